//! How large the parts of a message may be. Everything from outside is bounded before it is parsed.

/// Bounds on one message, in bytes. See `docs/reliability.md` for what happens to a message beyond them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The decoded body, after base64 and decompression.
    pub body: usize,
    /// Task id and task name.
    pub name: usize,
    /// A remote control request, or an event of another worker.
    pub control: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 64 << 20,
            name: 255,
            control: 16 << 20,
        }
    }
}
