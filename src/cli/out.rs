//! What commands print. Whoever reads it may have seen enough and be gone (`orchestra config --all | head -1`): that ends the
//! program quietly, where the standard library's `println!` panics.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// The exit code of a program that the end of a pipe stopped, as a shell shows it (128 and SIGPIPE).
const PIPE_CLOSED: i32 = 141;

/// Prints a line.
macro_rules! println {
    () => { $crate::cli::out::line(format_args!("")) };
    ($($words:tt)*) => { $crate::cli::out::line(format_args!($($words)*)) };
}

/// Prints without an end of line.
macro_rules! print {
    ($($words:tt)*) => { $crate::cli::out::text(format_args!($($words)*)) };
}

pub(super) fn line(words: Arguments<'_>) {
    end_if_nobody_reads(writeln!(std::io::stdout(), "{words}"));
}

pub(super) fn text(words: Arguments<'_>) {
    end_if_nobody_reads(write!(std::io::stdout(), "{words}"));
}

fn end_if_nobody_reads(printed: std::io::Result<()>) {
    if printed.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        std::process::exit(PIPE_CLOSED);
    }
}
