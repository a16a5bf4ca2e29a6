//! Calls of scripts with many arguments.

use redis::{Cmd, Script};

/// The call of a script with so many keys; they are its first arguments. The driver's own `ScriptInvocation` holds a
/// copy of each argument.
pub fn invocation(script: &Script, keys: usize) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys);
    call
}
