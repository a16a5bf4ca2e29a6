//! Which of several hosts that could have a call gets it: the rules a user can choose from, and how they are written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a host is chosen; `ai_routing`, `routing` of a model, of a call, of a step.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Strategy {
    /// One that has the model in memory, the emptiest of them; loads are the last resort.
    #[default]
    WarmFirst,
    /// The emptiest, also where the model has to be loaded.
    LeastBusy,
    /// The one that answered soonest, a load included.
    Latency,
    /// In proportion to the weights.
    Weighted,
    /// The same one for the same value of this header; once it is chosen, the value itself.
    Sticky(String),
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "warm-first" => Ok(Self::WarmFirst),
            "least-busy" => Ok(Self::LeastBusy),
            "latency" => Ok(Self::Latency),
            "weighted" => Ok(Self::Weighted),
            other => match other.strip_prefix("sticky(").and_then(|rest| rest.strip_suffix(')')) {
                Some(key) if !key.is_empty() => Ok(Self::Sticky(key.to_owned())),
                _ => Err(format!(
                    "{text:?} is no way to choose a host: use warm-first, least-busy, latency, weighted, or sticky(tenant) \
                     for the header tenant"
                )),
            },
        }
    }
}

impl TryFrom<String> for Strategy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.to_string()
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WarmFirst => f.write_str("warm-first"),
            Self::LeastBusy => f.write_str("least-busy"),
            Self::Latency => f.write_str("latency"),
            Self::Weighted => f.write_str("weighted"),
            Self::Sticky(key) => write!(f, "sticky({key})"),
        }
    }
}

/// A number that all workers, of whatever version, make of the same texts: FNV-1a, and a stir, since the last letters
/// are all that differs of many ids.
pub(super) fn mix(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// How much a key wants a host (weighted rendezvous): the host that it wants most gets it, and of many keys each host
/// gets its share by weight. A host that goes takes only its own keys with it.
pub(super) fn pull(key: &str, url: &str, weight: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits of it are enough")]
    let part = ((mix(&[key, url]) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight / -part.ln()
}

/// Two different places out of so many, by chance that is the same for the same id.
pub(super) fn two_of(id: &str, count: usize) -> (usize, usize) {
    let number = mix(&[id]);
    let below = |number: u64, count: usize| {
        let count = u64::try_from(count.max(1)).unwrap_or(1);
        usize::try_from(number % count).unwrap_or(0)
    };
    let first = below(number >> 32, count);
    if count < 2 {
        return (first, first);
    }
    let second = below(number & 0xffff_ffff, count - 1);
    (first, second + usize::from(second >= first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_read_as_they_are_written() {
        for text in ["warm-first", "least-busy", "latency", "weighted", "sticky(tenant)"] {
            assert_eq!(text.parse::<Strategy>().unwrap().to_string(), text);
        }
        for wrong in ["", "sticky", "sticky()", "fastest"] {
            let error = wrong.parse::<Strategy>().unwrap_err();
            assert!(error.contains("is no way to choose a host: use warm-first"), "{error}");
        }
    }

    #[test]
    fn keys_are_shared_out_by_weight_and_stay_when_a_host_goes() {
        let hosts = [("a", 1.0), ("b", 1.0), ("c", 2.0)];
        let chosen = |key: &str, hosts: &[(&'static str, f64)]| {
            let most = hosts
                .iter()
                .max_by(|a, b| pull(key, a.0, a.1).total_cmp(&pull(key, b.0, b.1)));
            most.unwrap().0
        };
        let keys: Vec<String> = (0..4_000).map(|key| key.to_string()).collect();
        let of = |host| keys.iter().filter(|key| chosen(key, &hosts) == host).count();
        assert!(
            of("a").abs_diff(1_000) < 150 && of("b").abs_diff(1_000) < 150,
            "{}",
            of("a")
        );
        assert!(of("c").abs_diff(2_000) < 150, "{}", of("c"));
        let moved = keys
            .iter()
            .filter(|key| chosen(key, &hosts) != "c" && chosen(key, &hosts) != chosen(key, &hosts[..2]));
        assert_eq!(moved.count(), 0);
    }

    #[test]
    fn two_are_two_and_all_have_their_turn() {
        let mut firsts = [0; 3];
        for id in 0..3_000 {
            let (first, second) = two_of(&id.to_string(), 3);
            assert!(first != second && first < 3 && second < 3);
            firsts[first] += 1;
        }
        assert!(firsts.iter().all(|count| (900..1_100).contains(count)), "{firsts:?}");
        assert_eq!(two_of("x", 1), (0, 0));
    }
}
