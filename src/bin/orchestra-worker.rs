//! The worker with the built-in AI tasks. A project with Rust tasks of its own has a `main` like this one.

/// A task is some fifty small allocations; this allocator needs half of the system's time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    orchestra::cli::worker_main(|_| Ok(()))
}
