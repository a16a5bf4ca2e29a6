//! Choices by other rules than what is in memory: the emptiest host, the quickest, by weight, or always the same.
//! Limits, breakers and who may be thrown out of memory for whom hold for them as for all.

use super::super::strategy::{Strategy, pull, two_of};
use super::{Host, Round, View, Waiting, Why};

/// Answers whose times differ by less than a fifth are equally soon.
const AS_SOON: f64 = 1.2;

/// What a rule says of a call.
pub(super) enum Ranked {
    /// It goes there.
    Place(usize, Why),
    /// It waits for its host.
    Wait,
    /// Nobody can have it now: the rules of memory say for whom it waits.
    Nobody,
}

impl Round {
    /// The choice of a call whose strategy is not `warm-first`.
    pub(super) fn ranked(&self, view: &View, call: &Waiting) -> Ranked {
        let able = self.able(view, call);
        let host = |at: usize| &view.hosts[at];
        let chosen = match &call.by {
            Strategy::WarmFirst => None,
            Strategy::LeastBusy => least(&able, view, &call.id, 1.0, |at| host(at).fullness()),
            Strategy::Latency => least(&able, view, &call.id, AS_SOON, |at| view.soon(host(at), &call.model)),
            Strategy::Weighted => most(able.iter().map(|(at, _)| *at), view, &call.id),
            Strategy::Sticky(key) => {
                let open = (0..view.hosts.len())
                    .filter(|at| call.may_go_to(host(*at)) && !host(*at).is_broken_for(&call.model));
                let home = most(open, view, key);
                let is_able = |at: usize| able.iter().any(|(able, _)| *able == at);
                match home {
                    Some(home) if is_able(home) => Some(home),
                    // Where it was before is worth as much waiting as a load elsewhere.
                    Some(_) if view.now.saturating_sub(call.since) < view.load_of(&call.model) => return Ranked::Wait,
                    _ => most(able.iter().map(|(at, _)| *at), view, key),
                }
            }
        };
        let place = chosen.and_then(|chosen| able.into_iter().find(|(at, _)| *at == chosen));
        place.map_or(Ranked::Nobody, |(at, why)| Ranked::Place(at, why))
    }

    /// The hosts that can have a call now. Those where its model failed the last time only if there are no others.
    fn able(&self, view: &View, call: &Waiting) -> Vec<(usize, Why)> {
        let model = call.model.as_str();
        let waited = view.now.saturating_sub(call.since);
        let hosts = view.hosts.iter().enumerate().filter(|(_, host)| call.may_go_to(host));
        let mut able: Vec<(usize, Why)> = hosts
            .filter_map(|(at, host)| {
                if !host.is_warm(model) {
                    return Some((at, self.cold(view, at, host, model, waited)?.1?));
                }
                (host.room(model) > 0 && self.kept[at].is_none()).then_some((at, Why::Warm))
            })
            .collect();
        let is_doubtful = |at: usize| view.hosts[at].is_last_choice(model);
        if able.iter().any(|(at, _)| !is_doubtful(*at)) {
            able.retain(|(at, _)| !is_doubtful(*at));
        }
        able
    }
}

impl View {
    /// When a host would answer, in milliseconds: as it did before, after the load where there is one. Where nobody was
    /// answered yet is at once: it has to be tried.
    pub(super) fn soon(&self, host: &Host, model: &str) -> f64 {
        let pace = host.paces.get(model).copied().unwrap_or(0);
        let load = if host.is_warm(model) { 0 } else { self.load_of(model) };
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a call")]
        let soon = (pace + load) as f64;
        soon
    }
}

/// The one that costs least; of several that cost about the same the emptier of two, by chance, so that workers that
/// choose from the same picture do not all choose the same.
fn least(able: &[(usize, Why)], view: &View, id: &str, about: f64, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let least = able.iter().map(|(at, _)| cost(*at)).min_by(f64::total_cmp)?;
    let tied: Vec<usize> = able
        .iter()
        .map(|(at, _)| *at)
        .filter(|at| cost(*at) <= least * about)
        .collect();
    of_two(view, id, &tied)
}

/// The emptier of two hosts, chosen by an id.
pub(super) fn of_two(view: &View, id: &str, tied: &[usize]) -> Option<usize> {
    let (first, second) = two_of(id, tied.len());
    let (first, second) = (*tied.get(first)?, *tied.get(second)?);
    let fullness = |at: usize| view.hosts[at].fullness();
    Some(if fullness(second) < fullness(first) {
        second
    } else {
        first
    })
}

/// The host that a key wants most.
fn most(able: impl Iterator<Item = usize>, view: &View, key: &str) -> Option<usize> {
    let wish = |at: &usize| pull(key, &view.hosts[*at].url, view.hosts[*at].weight);
    able.max_by(|a, b| wish(a).total_cmp(&wish(b)))
}
