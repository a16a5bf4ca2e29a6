//! The program for people: start everything, send, look, check.

fn main() -> std::process::ExitCode {
    orchestra::cli::program_main()
}
