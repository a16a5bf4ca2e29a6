//! Every kind of bytes from outside, changed at random from seeds: nothing panics and nothing takes long. A short run
//! of what `make fuzz` does for hours. `FUZZ_MINUTES` for each kind make it longer, `FUZZ_SEED` takes another way.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::dice::Dice;
use targets::TARGETS;

#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Inputs of each kind, at least.
const INPUTS: u64 = 1000;
/// No input may take longer; twenty times what is seen, for machines that do other things.
const LONGEST: Duration = Duration::from_secs(5);

/// Pieces that break things.
const PIECES: [&[u8]; 20] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\ud800",
    b"\xff\xfe",
    b"\0",
    b"NaN",
    b"-1",
    b"1e999",
    b"99999999999999999999999999",
    b"null",
    b"\n",
    b"&a [*a, *a]",
    b"{{ x",
    b"{% for i in range(99999999) %}x{% endfor %}",
    b"9999-12-31T23:59:59.999999+23:59",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b": {",
];

fn change(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |dice: &mut Dice| seeds[dice.below(seeds.len() as u64) as usize].clone();
    let mut bytes = pick(dice);
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() as u64 + 1) as usize;
        let to = (at + dice.below(40) as usize).min(bytes.len());
        match dice.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            2 => drop(bytes.drain(at..to)),
            3 => {
                let again = bytes[at..to].repeat(dice.below(50) as usize);
                bytes.splice(at..at, again);
            }
            4 => bytes.truncate(at),
            5 => {
                let other = pick(dice);
                let from = dice.below(other.len() as u64 + 1) as usize;
                bytes.splice(at..to, other[from..].iter().copied());
            }
            _ => {
                let piece = PIECES[dice.below(PIECES.len() as u64) as usize];
                let times = if dice.below(10) == 0 { 300 } else { 1 };
                bytes.splice(at..to, piece.repeat(times));
            }
        }
    }
    bytes
}

#[test]
fn bytes_from_outside_neither_panic_nor_hang() {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (seed, minutes) = (number("FUZZ_SEED", 1), number("FUZZ_MINUTES", 0));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(corpus.join(name))
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        let seeds: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let mut dice = Dice::new(seed);
        let (start, mut slowest, mut inputs) = (Instant::now(), Duration::ZERO, 0);
        while inputs < INPUTS || start.elapsed() < Duration::from_secs(60 * minutes) {
            let unchanged = seeds.get(inputs as usize).cloned();
            let bytes = unchanged.unwrap_or_else(|| change(&mut dice, &seeds));
            let began = Instant::now();
            let ended = std::panic::catch_unwind(|| target(&bytes));
            let took = began.elapsed();
            let shown = || bytes.escape_ascii().to_string();
            assert!(ended.is_ok(), "{name} panics at: {}", shown());
            assert!(took < LONGEST, "{name} takes {took:?} for: {}", shown());
            slowest = slowest.max(took);
            inputs += 1;
        }
        eprintln!(
            "{name}: {inputs} inputs in {:.1?}, the slowest {slowest:.1?}",
            start.elapsed()
        );
    }
}
