//! What was known of each host when a call got its place: the reasons of a choice, for its record.

use super::super::super::ollama::Stood;
use super::super::strategy::Strategy;
use super::{Health, Host, Placed, View, Waiting};

/// How the hosts stood at the choice, for those of the placed calls that are asked about. Of one host there is nothing
/// to tell.
pub fn standings(view: &View, placed: &[Placed], is_asked: impl Fn(&Placed) -> bool) -> Vec<Vec<Stood>> {
    if view.hosts.len() < 2 {
        return placed.iter().map(|_| Vec::new()).collect();
    }
    // Each choice was made with those before it in their places.
    let mut view = view.clone();
    let stood = |one: &Placed| {
        let call = &view.waiting[one.call];
        let stood = if is_asked(one) {
            view.hosts.iter().map(|host| view.stood(host, call)).collect()
        } else {
            Vec::new()
        };
        let model = call.model.clone();
        view.hosts[one.host].accept(&model, &one.why);
        stood
    };
    placed.iter().map(stood).collect()
}

impl View {
    fn stood(&self, host: &Host, call: &Waiting) -> Stood {
        Stood {
            host: host.url.clone(),
            was: self.words(host, call),
        }
    }

    fn words(&self, host: &Host, call: &Waiting) -> String {
        let model = call.model.as_str();
        if !host.may_serve(model) {
            return "does not have the model".into();
        }
        if call.not.contains(&host.url) {
            return "had failed this call".into();
        }
        if host.gone {
            return "could not be reached".into();
        }
        if host.health == Health::Broken {
            return "left alone after failures".into();
        }
        if host.is_broken_for(model) {
            return "left alone with this model after failures".into();
        }
        let used: usize = host.busy.values().sum();
        let memory = if host.is_warm(model) {
            "in memory"
        } else if host.has_space(model, &[]) {
            "to be loaded"
        } else {
            "to be loaded in the place of another"
        };
        let mut words = format!("{memory}, {used} of {} calls", host.max_parallel);
        if call.by == Strategy::Latency {
            match host.paces.get(model) {
                Some(pace) => words += &format!(", {pace} ms for 100 tokens"),
                None => words += ", not tried yet",
            }
        }
        if host.weight.to_bits() != 1.0_f64.to_bits() {
            words += &format!(", weight {}", host.weight);
        }
        words
    }
}
