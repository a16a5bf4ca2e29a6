//! How large the parts of a message may be. Everything from outside is bounded before it is parsed.

/// Bounds on one message, in bytes but for the depth. See `docs/reliability.md` for what happens to a message beyond
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The decoded body, after base64 and decompression.
    pub body: usize,
    /// Task id and task name.
    pub name: usize,
    /// A remote control request, or an event of another worker.
    pub control: usize,
    /// Levels of lists and objects in arguments; [`DEEPEST`] at most.
    pub depth: usize,
}

/// As deep as the JSON parser goes.
pub const DEEPEST: usize = 127;

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 64 << 20,
            name: 255,
            control: 16 << 20,
            depth: DEEPEST,
        }
    }
}
