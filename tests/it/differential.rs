//! Random canvases, run by a Python worker, by ours, and by both on one queue (`tests/differential/run.py`).

use std::path::Path;
use std::process::Command;

use crate::support::{program, python};

#[test]
fn random_canvases_end_as_they_do_with_a_python_worker() {
    compare(&["--number", "30", "--seed", "7"]);
}

/// Everybody is told so: the client, the Python worker and ours.
#[test]
fn p_140_error_callbacks_of_a_chord_reach_its_header_where_the_setting_says_so() {
    compare(&["--number", "5", "--seed", "8", "--header-errors"]);
}

fn compare(arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/run.py");
    let out = Command::new(python())
        .arg(script)
        .args(arguments)
        .args(["--batch", "40", "--shrink", "1", "--worker"])
        .arg(program("conformance_worker"))
        .output()
        .expect("there is a Python; `make test` makes one");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    // That something was compared, and that both workers took part.
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(" canvases equal ("), "{text}");
    assert!(
        !last.contains("queue: 0 by Python") && !last.contains(" 0 by ours"),
        "{text}"
    );
}
