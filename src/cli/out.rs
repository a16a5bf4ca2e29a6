//! What commands print. Whoever reads it may have seen enough and be gone (`orchestra config --all | head -1`): that
//! ends the program quietly, where the standard library's `println!` panics. What cannot be written otherwise, on a
//! full disk, ends it with an error, so that `orchestra dead list >file && orchestra dead drop --all` loses nothing.
//!
//! Much of it was written by others: tasks, models, whoever can write to Redis. So what a line is made of is never a
//! command to the terminal that shows it. A file or a pipe gets what is printed whole.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

/// The exit code of a program that the end of a pipe stopped, as a shell shows it (128 and SIGPIPE).
pub(super) const PIPE_CLOSED: u8 = 141;

/// The program whose commands print; the worker has its log.
const PROGRAM: &str = "orchestra";

/// Prints a line.
macro_rules! println {
    () => { $crate::cli::out::line(format_args!("")) };
    ($($words:tt)*) => { $crate::cli::out::line(format_args!($($words)*)) };
}

/// Prints without an end of line, and at once: as it is, commands to the terminal among it.
macro_rules! print {
    ($($words:tt)*) => { $crate::cli::out::text(format_args!($($words)*)) };
}

/// Says a line on the standard error. A terminal that was closed hears nothing, which must not stop who goes on without
/// it.
macro_rules! eprintln {
    () => { $crate::cli::out::said(format_args!("")) };
    ($($words:tt)*) => { $crate::cli::out::said(format_args!($($words)*)) };
}

pub(super) fn line(words: Arguments<'_>) {
    end_unless(PROGRAM, writeln!(std::io::stdout(), "{}", shown(&words.to_string())));
}

pub(super) fn text(words: Arguments<'_>) {
    let mut out = std::io::stdout();
    end_unless(PROGRAM, write!(out, "{words}").and_then(|()| out.flush()));
}

/// Prints bytes as they are.
pub(super) fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout();
    end_unless(PROGRAM, out.write_all(bytes).and_then(|()| out.flush()));
}

/// Prints bytes that may be no text, and a line's end: as they are, but for a terminal.
pub(super) fn stored(bytes: &[u8]) {
    if std::io::stdout().is_terminal() {
        println!("{}", String::from_utf8_lossy(bytes));
    } else {
        self::bytes(&[bytes, b"\n"].concat());
    }
}

pub(super) fn said(words: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{}", plain_lines(&words.to_string()));
}

/// Ends the program of that name unless it could print.
pub(super) fn end_unless(program: &str, printed: std::io::Result<()>) {
    let Err(error) = printed else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(PIPE_CLOSED.into());
    }
    eprintln!("{program}: cannot write to the standard output: {error}");
    std::process::exit(1);
}

/// The standard output for what writes by itself; it ends the program as the others do.
pub(super) struct Out;

impl std::io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self::bytes(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A text of somebody else's as a terminal may have it within a line: nothing of it is a command to the terminal.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// The same of a text that may have several lines.
pub(super) fn plain_lines(text: &str) -> String {
    text.replace(
        |char: char| char.is_control() && !matches!(char, '\n' | '\t'),
        "\u{fffd}",
    )
}

/// A text that a task or a model has written: whole in a file, and on a terminal without what would be a command to it.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() {
        plain_lines(text).into()
    } else {
        text.into()
    }
}
