//! What senders use.
/// A client.
#[derive(Clone, Debug)]
pub struct Client {}
