use super::*;

fn host(url: &str, warm: &[&str], busy: &[(&str, usize)]) -> Host {
    Host {
        url: url.into(),
        weight: 1.0,
        max_parallel: 2,
        max_loaded: 1,
        vram: None,
        sizes: BTreeMap::new(),
        busy: busy.iter().map(|(model, calls)| ((*model).into(), *calls)).collect(),
        warm: warm.iter().map(|model| (*model).into()).collect(),
        loading: 0,
        serves: None,
        health: Health::Well,
        gone: false,
        sick: BTreeMap::new(),
        shaky: BTreeSet::new(),
        paces: BTreeMap::new(),
    }
}

fn call(id: &str, model: &str, since: u64) -> Waiting {
    Waiting {
        id: id.into(),
        model: model.into(),
        priority: 0,
        since,
        not: Vec::new(),
        tenant: None,
        by: Strategy::WarmFirst,
    }
}

fn view(hosts: Vec<Host>, waiting: Vec<Waiting>) -> View {
    View {
        now: 100_000,
        hosts,
        waiting,
        usual_load: 5_000,
        switch_after: 30_000,
        ..View::default()
    }
}

/// As `call@host`, with what goes for it.
fn places(view: &View) -> Vec<String> {
    let shown = |placed: &Placed| {
        let (call, host) = (&view.waiting[placed.call].id, &view.hosts[placed.host].url);
        match &placed.why {
            Why::Warm => format!("{call}@{host}"),
            Why::Load => format!("{call}@{host} load"),
            Why::Instead(victims) => format!("{call}@{host} for {}", victims.join(" and ")),
        }
    };
    assign(view.clone()).iter().map(shown).collect()
}

#[test]
fn a_call_goes_where_its_model_is_and_to_the_emptier_of_two() {
    let hosts = vec![
        host("a", &["n"], &[]),
        host("b", &["m"], &[("m", 1)]),
        host("c", &["m"], &[]),
    ];
    assert_eq!(places(&view(hosts, vec![call("1", "m", 100_000)])), ["1@c"]);
}

#[test]
fn a_full_warm_host_is_waited_for_as_long_as_a_load_takes() {
    let hosts = vec![host("a", &["m"], &[("m", 2)]), host("b", &[], &[])];
    assert!(places(&view(hosts.clone(), vec![call("1", "m", 96_000)])).is_empty());
    assert_eq!(places(&view(hosts.clone(), vec![call("1", "m", 95_000)])), ["1@b load"]);
    let mut slow = view(hosts, vec![call("1", "m", 95_000)]);
    slow.loads.insert("m".into(), 60_000);
    assert!(places(&slow).is_empty(), "its load takes a minute");
}

#[test]
fn a_model_that_others_wait_for_is_not_thrown_out_before_its_time() {
    let hosts = vec![host("a", &["m"], &[("m", 2)])];
    let waiting = |since| vec![call("cold", "n", since), call("warm", "m", 99_000)];
    assert!(places(&view(hosts.clone(), waiting(80_000))).is_empty());
    // Its turn: the host takes nothing until it is idle, and then loads.
    let mut turn = view(hosts, waiting(60_000));
    turn.hosts[0].busy.insert("m".into(), 1);
    assert!(places(&turn).is_empty());
    turn.hosts[0].busy.clear();
    assert_eq!(places(&turn), ["cold@a for m"]);
    turn.waiting[0].since = 80_000;
    assert_eq!(
        places(&turn),
        ["warm@a"],
        "one whose time has not come does not hold it up"
    );
}

#[test]
fn memory_to_spare_is_used_before_a_model_goes() {
    let mut hosts = vec![host("a", &["x"], &[]), host("b", &["y"], &[])];
    hosts[1].max_loaded = 2;
    assert_eq!(
        places(&view(hosts.clone(), vec![call("1", "m", 100_000)])),
        ["1@b load"]
    );
    hosts[1].max_loaded = 1;
    hosts[1].weight = 2.0;
    assert_eq!(
        places(&view(hosts, vec![call("1", "m", 100_000)])),
        ["1@b for y"],
        "the faster one"
    );
}

/// A card of 100: what fits beside the others is loaded there, as many go as have to, and none that is in use.
#[test]
fn bytes_of_video_memory_are_kept() {
    let mut one = host("a", &["x", "y", "z"], &[]);
    one.max_loaded = 9;
    one.vram = Some(100);
    one.sizes = [("x", 20), ("y", 20), ("z", 20), ("small", 30), ("m", 50), ("huge", 500)]
        .map(|(model, size)| (model.to_owned(), size))
        .into();
    let placed = |one: &Host, model: &str| places(&view(vec![one.clone()], vec![call("1", model, 99_999)]));
    assert_eq!(placed(&one, "small"), ["1@a load"], "30 of 40");
    assert_eq!(
        placed(&one, "m"),
        ["1@a for z and y"],
        "50 needs 63: two go, those used longest ago"
    );
    one.busy.insert("z".into(), 1);
    assert_eq!(placed(&one, "m"), ["1@a for y and x"]);
    one.busy.insert("y".into(), 1);
    assert!(placed(&one, "m").is_empty(), "what is in use stays");
    one.busy.clear();
    assert_eq!(
        placed(&one, "huge"),
        ["1@a for z and y and x"],
        "alone, and partly on the processor"
    );
    let mut large = host("b", &["w"], &[]);
    large.vram = Some(1_000);
    large.sizes = one.sizes.clone();
    let both = view(vec![one, large], vec![call("1", "huge", 99_999)]);
    assert_eq!(places(&both), ["1@b for w"], "where it fits");
}

/// Two workers choose from the same picture; the call that counts on a load which another worker's call is to order may
/// be the first to ask, and then orders it.
#[test]
fn whoever_comes_first_orders_the_load() {
    let fleet = view(
        vec![host("a", &["x"], &[])],
        vec![call("theirs", "m", 1), call("ours", "m", 2), call("ours too", "m", 3)],
    );
    let mut fleet = fleet;
    fleet.hosts[0].max_parallel = 3;
    let given = assign(fleet.clone());
    let why = |placed: &[Placed]| placed.iter().map(|one| one.why.clone()).collect::<Vec<_>>();
    let load = Why::Instead(vec!["x".into()]);
    assert_eq!(why(&given), [load.clone(), Why::Warm, Why::Warm]);
    let ours = own(&fleet, given, |placed| {
        fleet.waiting[placed.call].id.starts_with("ours")
    });
    assert_eq!(why(&ours), [load, Why::Warm]);
}

#[test]
fn one_load_serves_all_that_wait_for_it() {
    let hosts = vec![host("a", &[], &[]), host("b", &[], &[])];
    let waiting = vec![call("1", "m", 99_999), call("2", "m", 99_999), call("3", "m", 99_999)];
    assert_eq!(
        places(&view(hosts, waiting)),
        ["1@a load", "2@a"],
        "and the third waits"
    );
}

#[test]
fn limits_of_hosts_and_models_hold() {
    let mut all = view(vec![host("a", &["m"], &[]), host("b", &["m"], &[])], Vec::new());
    all.waiting = (0..9).map(|id| call(&id.to_string(), "m", 0)).collect();
    assert_eq!(assign(all.clone()).len(), 4);
    all.limits.insert("m".into(), 3);
    assert_eq!(assign(all).len(), 3);
}

#[test]
fn priority_overtakes_and_age_catches_up() {
    let mut one = host("a", &["m"], &[]);
    one.max_parallel = 1;
    let mut waiting = vec![call("old", "m", 50_000), call("urgent", "m", 99_000)];
    waiting[1].priority = 9;
    assert_eq!(places(&view(vec![one.clone()], waiting.clone())), ["urgent@a"]);
    waiting[0].since = 8_000;
    assert_eq!(places(&view(vec![one], waiting)), ["old@a"]);
}

#[test]
fn the_many_calls_of_a_tenant_do_not_keep_the_few_of_another_waiting() {
    let mut one = host("a", &["m"], &[]);
    one.max_parallel = 3;
    let of = |id: &str, tenant: &str, since| Waiting {
        tenant: Some(tenant.into()),
        ..call(id, "m", since)
    };
    let mut waiting: Vec<Waiting> = (0..40)
        .map(|at| of(&format!("big{at:02}"), "big", 80_000 + at))
        .collect();
    waiting.push(of("small", "small", 95_000));
    assert_eq!(
        places(&view(vec![one.clone()], waiting.clone())),
        ["big00@a", "big01@a", "small@a"]
    );
    waiting.iter_mut().for_each(|call| call.tenant = None);
    assert_eq!(places(&view(vec![one], waiting)), ["big00@a", "big01@a", "big02@a"]);
}

#[test]
fn broken_hosts_get_nothing_and_a_trial_gets_one() {
    let mut hosts = vec![host("a", &["m"], &[]), host("b", &[], &[])];
    hosts[0].health = Health::Broken;
    let waiting = vec![call("1", "m", 99_999), call("2", "m", 99_999)];
    assert_eq!(places(&view(hosts.clone(), waiting.clone())), ["1@b load", "2@b"]);
    let mut sick = hosts.clone();
    sick[0].health = Health::Well;
    sick[0].sick.insert("m".into(), Health::Broken);
    let other = call("3", "n", 99_999);
    sick[1].health = Health::Broken;
    let given = places(&view(sick, vec![waiting[0].clone(), other]));
    assert_eq!(given, ["3@a for m"], "a model that fails there keeps no other away");
    hosts[0].health = Health::Trial;
    hosts[1].health = Health::Broken;
    assert_eq!(places(&view(hosts, waiting)), ["1@a"]);
}

#[test]
fn a_model_is_not_loaded_where_it_failed_if_another_host_can() {
    let mut hosts = vec![host("a", &[], &[]), host("b", &["x"], &[])];
    let one = || vec![call("1", "m", 99_999)];
    assert_eq!(places(&view(hosts.clone(), one())), ["1@a load"]);
    hosts[0].shaky.insert("m".into());
    assert_eq!(places(&view(hosts.clone(), one())), ["1@b for x"]);
    hosts[1].health = Health::Broken;
    assert_eq!(places(&view(hosts, one())), ["1@a load"], "better than nowhere");
}

#[test]
fn who_can_have_no_place_is_told_why() {
    let mut fleet = view(vec![host("a", &[], &[])], Vec::new());
    let mut one = call("1", "m", 0);
    assert_eq!(nowhere(&fleet, &one), None);
    fleet.hosts[0].gone = true;
    assert_eq!(nowhere(&fleet, &one), Some(Nowhere::Gone));
    one.not.push("a".into());
    assert_eq!(nowhere(&fleet, &one), Some(Nowhere::Failed));
    fleet.hosts[0].serves = Some(BTreeSet::from(["n".to_owned()]));
    assert_eq!(nowhere(&fleet, &one), Some(Nowhere::Lacking));
    assert!(
        assign(View {
            waiting: vec![one],
            ..fleet
        })
        .is_empty()
    );
}

/// A fleet of three hosts with one model each, driven by a seeded workload in simulated time: how many loads there
/// are, and how long it takes. `choose` places the calls that wait.
fn drive(calls: &[usize], mut choose: impl FnMut(View) -> Vec<Placed>) -> (usize, u64) {
    const LOAD: u64 = 4_000;
    const RUN: u64 = 400;
    let names: Vec<String> = (0..6).map(|model| format!("m{model}")).collect();
    let mut hosts: Vec<Host> = ["a", "b", "c"].iter().map(|url| host(url, &[], &[])).collect();
    // When each host's load is over, and the ends of calls.
    let mut loaded = [0_u64; 3];
    let mut running: Vec<(u64, usize, String)> = Vec::new();
    let mut todo = calls.iter().enumerate();
    let mut waiting: Vec<Waiting> = Vec::new();
    let (mut now, mut loads) = (0, 0);
    loop {
        // Eight workers with four places each hold at most so many calls.
        while waiting.len() + running.len() < 32
            && let Some((id, model)) = todo.next()
        {
            waiting.push(call(&format!("{id:05}"), &names[*model], now));
        }
        let given = choose(View {
            now,
            hosts: hosts.clone(),
            waiting: waiting.clone(),
            usual_load: LOAD,
            switch_after: 30_000,
            ..View::default()
        });
        let mut gone = Vec::new();
        for Placed { call, host, .. } in given {
            let model = waiting[call].model.clone();
            let to = &mut hosts[host];
            if to.warm.first() != Some(&model) {
                loads += 1;
                let idle = running.iter().filter(|run| run.1 == host).map(|run| run.0).max();
                loaded[host] = idle.unwrap_or(now).max(now) + LOAD;
                to.warm = vec![model.clone()];
            }
            *to.busy.entry(model.clone()).or_default() += 1;
            running.push((loaded[host].max(now) + RUN, host, model));
            gone.push(call);
        }
        gone.sort_unstable();
        for call in gone.into_iter().rev() {
            waiting.remove(call);
        }
        let Some(next) = running.iter().map(|run| run.0).min() else {
            assert!(waiting.is_empty(), "nobody is served: {waiting:?}");
            return (loads, now);
        };
        // A look at least every second: some rules depend on time alone.
        now = next.min(now + 1_000);
        running.retain(|(end, host, model)| {
            if *end <= now {
                *hosts[*host].busy.get_mut(model).unwrap() -= 1;
            }
            *end > now
        });
    }
}

#[test]
fn the_same_workload_takes_a_fifth_of_the_loads_of_round_robin_and_ends_sooner() {
    let mut seed = 7_u64;
    let calls: Vec<usize> = (0..600)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % 6
        })
        .collect();
    let (loads, took) = drive(&calls, assign);
    let mut turn = 0;
    let (theirs, they_took) = drive(&calls, |view| {
        let mut room: Vec<usize> = view.hosts.iter().map(|host| host.room("")).collect();
        let mut placed = Vec::new();
        for call in 0..view.waiting.len() {
            if room[turn % 3] == 0 {
                break;
            }
            room[turn % 3] -= 1;
            placed.push(Placed {
                call,
                host: turn % 3,
                why: Why::Warm,
            });
            turn += 1;
        }
        placed
    });
    // The least that three hosts with two places can need, without any load.
    let ideal = 600 / 6 * 400;
    println!("loads {loads} against {theirs}; {took} ms against {they_took} ms; ideal without loads {ideal} ms");
    assert!(loads * 5 <= theirs, "{loads} loads against {theirs}");
    assert!(took * 2 <= they_took, "{took} ms against {they_took} ms");
}

/// How many of so many calls each host gets that come one after the other, each when the one before it has ended.
fn share(hosts: &[Host], by: &Strategy, calls: usize) -> BTreeMap<String, usize> {
    let mut share = BTreeMap::new();
    for id in 0..calls {
        let one = Waiting {
            by: by.clone(),
            ..call(&format!("call {id}"), "m", 99_999)
        };
        let placed = assign(view(hosts.to_vec(), vec![one]));
        *share.entry(hosts[placed[0].host].url.clone()).or_default() += 1;
    }
    share
}

#[test]
fn hosts_that_are_alike_get_alike() {
    let hosts = ["a", "b", "c"].map(|url| host(url, &["m"], &[]));
    for by in [
        Strategy::WarmFirst,
        Strategy::LeastBusy,
        Strategy::Latency,
        Strategy::Weighted,
    ] {
        let share = share(&hosts, &by, 300);
        assert!(
            share.len() == 3 && share.values().all(|calls| (70..130).contains(calls)),
            "{by}: {share:?}"
        );
    }
}

#[test]
fn the_emptiest_host_gets_a_call_though_it_has_to_load() {
    let hosts = vec![host("a", &["m"], &[("m", 1)]), host("b", &["x"], &[])];
    let mut one = call("1", "m", 99_999);
    assert_eq!(places(&view(hosts.clone(), vec![one.clone()])), ["1@a"]);
    one.by = Strategy::LeastBusy;
    assert_eq!(places(&view(hosts.clone(), vec![one.clone()])), ["1@b for x"]);
    let mut used = hosts;
    used[1].busy.insert("x".into(), 1);
    assert_eq!(
        places(&view(used, vec![one])),
        ["1@a"],
        "what is in use is thrown out for nobody"
    );
}

#[test]
fn the_quickest_host_gets_a_call_and_loads_are_part_of_it() {
    let mut hosts = vec![host("a", &["m"], &[]), host("b", &["m"], &[]), host("c", &[], &[])];
    let by = Strategy::Latency;
    for (host, pace) in hosts.iter_mut().zip([900, 300, 100]) {
        host.paces.insert("m".into(), pace);
    }
    assert_eq!(
        share(&hosts, &by, 20),
        BTreeMap::from([("b".to_owned(), 20)]),
        "c would load for 5 s"
    );
    hosts[2].warm = vec!["m".into()];
    assert_eq!(share(&hosts, &by, 20), BTreeMap::from([("c".to_owned(), 20)]));
    hosts[0].paces.clear();
    assert_eq!(
        share(&hosts, &by, 20),
        BTreeMap::from([("a".to_owned(), 20)]),
        "nobody knows it yet"
    );
}

#[test]
fn calls_are_shared_out_by_weight() {
    let mut hosts = ["a", "b"].map(|url| host(url, &["m"], &[]));
    hosts[1].weight = 3.0;
    let share = share(&hosts, &Strategy::Weighted, 400);
    assert!(share["b"].abs_diff(300) < 40, "{share:?}");
}

#[test]
fn a_key_keeps_its_host_and_waits_for_it_as_long_as_a_load_takes() {
    let mut hosts = ["a", "b", "c"].map(|url| host(url, &["m"], &[])).to_vec();
    let sticky = |key: &str| Strategy::Sticky(key.into());
    let homes: BTreeSet<String> = (0..20)
        .map(|key| {
            let share = share(&hosts, &sticky(&key.to_string()), 5);
            assert_eq!(share.len(), 1, "all calls of a key are on one host");
            share.into_keys().next().unwrap()
        })
        .collect();
    assert_eq!(homes.len(), 3, "and keys are shared out");
    let home = share(&hosts, &sticky("x"), 1).into_keys().next().unwrap();
    let at = hosts.iter().position(|host| host.url == home).unwrap();
    hosts[at].busy.insert("m".into(), 2);
    let mut one = call("1", "m", 99_999);
    one.by = sticky("x");
    assert!(places(&view(hosts.clone(), vec![one.clone()])).is_empty());
    one.since = 90_000;
    let given = places(&view(hosts.clone(), vec![one.clone()]));
    assert!(given.len() == 1 && given[0] != format!("1@{home}"), "{given:?}");
    one.since = 99_999;
    hosts[at].health = Health::Broken;
    assert_eq!(
        places(&view(hosts, vec![one])).len(),
        1,
        "a host that is gone is not waited for"
    );
}

#[test]
fn the_record_says_how_all_hosts_stood() {
    let mut hosts = vec![
        host("a", &["m"], &[]),
        host("b", &["x"], &[("x", 1)]),
        host("c", &[], &[]),
    ];
    hosts[2].health = Health::Broken;
    let view = view(hosts, vec![call("1", "m", 99_999), call("2", "m", 99_999)]);
    let placed = assign(view.clone());
    let stood = standings(&view, &placed, |_| true);
    let words: Vec<&str> = stood[1].iter().map(|stood| stood.was.as_str()).collect();
    assert_eq!(
        words,
        [
            "in memory, 1 of 2 calls",
            "to be loaded in the place of another, 1 of 2 calls",
            "left alone after failures"
        ]
    );
    let alone = View {
        hosts: view.hosts[..1].to_vec(),
        ..view.clone()
    };
    assert!(
        standings(&alone, &placed, |_| true)[0].is_empty(),
        "of one host there is nothing to tell"
    );
}

#[test]
fn the_many_calls_of_a_model_do_not_hide_the_one_of_another() {
    let mut calls: Vec<Waiting> = (0..100).map(|at| call(&format!("a{at:03}"), "a", 1_000 + at)).collect();
    calls.push(call("b", "b", 5_000));
    let mut urgent = call("c", "a", 6_000);
    urgent.priority = 9;
    calls.push(urgent);
    let waiting: Vec<&Waiting> = calls.iter().collect();
    let ids = |most| -> Vec<&str> {
        let shown = shown(&waiting, most);
        shown.into_iter().map(|at| &*calls[at].id).collect()
    };
    assert_eq!(ids(4), ["c", "b", "a000", "a001"], "in turns, and in each by rank");
    assert_eq!(ids(200).len(), 102);
}
