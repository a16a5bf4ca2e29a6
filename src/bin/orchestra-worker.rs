//! The worker with the built-in AI tasks. A project with Rust tasks of its own has a `main` like this one.

fn main() -> std::process::ExitCode {
    orchestra::cli::worker_main(|_| Ok(()))
}
