//! Settings, read and shown.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::certificates::fits;
use super::load::{read_environment, read_file};
use super::secrets::hide;
use super::table::Given;
use super::{SETTINGS, Settings, defaults};
use crate::wire::redact::HIDDEN;

fn file(text: &str) -> Result<Settings, String> {
    let mut given = Given::default();
    read_file(&mut given, Path::new("orchestra.toml"), text)?;
    Settings::new(given)
}

#[test]
fn a_file_is_read() {
    let settings = file(
        "broker_url = 'redis://h:1/2'\ntask_time_limit = 3\nresult_expires = 0.5\ntask_queues = 'a, b'\n\
         [broker_transport_options]\nvisibility_timeout = 10\nqueue_order_strategy = 'priority'\n",
    )
    .unwrap();
    assert_eq!(settings.broker_url, "redis://h:1/2");
    assert_eq!(settings.time_limit, Some(Duration::from_secs(3)));
    assert_eq!(settings.queues, ["a", "b"]);
    assert_eq!(settings.broker_options().visibility_timeout, Duration::from_secs(10));
    assert_eq!(
        settings.backend_options().unwrap().result_expires,
        Some(Duration::from_millis(500))
    );
}

#[test]
fn a_pattern_of_a_certificate_store_fits_as_in_a_shell() {
    for (name, pattern, is_so) in [
        ("a.pem", "*.pem", true),
        ("a.pem", "*", true),
        ("a.pem", "a*p*m", true),
        ("a.pem", "*.key", false),
        ("ä.pem", "a*", false),
        ("", "*", true),
    ] {
        assert_eq!(fits(name, pattern), is_so, "{name} {pattern}");
    }
}

#[test]
fn p_184_secrets_are_not_shown() {
    let settings = file(
        "broker_url = 'redis://:hunter2@h:1/2'\nresult_backend = 'rediss://u:hunter2@h:1/2?x=1'\n\
         ai_hosts = ['http://me:hunter2@gpu:11434', 'http://plain:11434']\n\
         [broker_transport_options]\nglobal_keyprefix = 'app:'\n",
    )
    .unwrap();
    let shown = Value::Object(settings.shown());
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    assert_eq!(shown["broker_url"], "redis://:********@h:1/2");
    assert_eq!(shown["result_backend"], "rediss://u:********@h:1/2?x=1");
    assert_eq!(
        shown["ai_hosts"],
        json!(["http://me:********@gpu:11434", "http://plain:11434"])
    );
    assert_eq!(shown["broker_transport_options"], json!({"global_keyprefix": "app:"}));
    for name in ["ai_api_token", "http_secret_key", "store_password"] {
        let mut value = json!("hunter2");
        hide(name, &mut value);
        assert_eq!(value, HIDDEN, "{name}");
    }
}

/// Neither in what is shown of settings, nor in what is said of wrong ones.
#[test]
fn p_184_secrets_are_hidden_at_any_depth() {
    let settings = file(
        "timezone = 'Europe/Berlin'\naccept_content = ['auth', 'json']\n[beat_schedule.e]\ntask = 't'\nschedule = 5\n\
         kwargs = {apiKey = 'hunter2', db_password = 'hunter2', body = '{\"token\": \"hunter2\"}', n = 1}\n\
         options = {headers = {Authorization = 'hunter2'}}\n",
    );
    let shown = Value::Object(settings.unwrap().shown());
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    assert_eq!(shown["beat_schedule"]["e"]["kwargs"]["n"], 1);
    assert_eq!(shown["accept_content"], json!(["auth", "json"]));
    assert_eq!(shown["timezone"], "Europe/Berlin");
    for text in [
        "broker_url = ['redis://:hunter2@h']",
        "security_key_password = {a = 'hunter2'}",
        "worker_concurrency = 'redis://:hunter2@h'",
        "broker_transport_options = {sentinel_kwargs = {password = 'hunter2'}, visibility_timeout = 'x'}",
        "ai_hosts = [{url = 'http://h', headers = 'Bearer hunter2'}]",
        "[beat_schedule.e]\ntask = 't'\nschedule = 5\nkwargs = 'hunter2'",
    ] {
        let error = file(text).unwrap_err();
        assert!(
            !error.contains("hunter2") && error.starts_with("orchestra.toml:"),
            "{error}"
        );
    }
    let error = file("security_key_password = 12345").unwrap_err();
    assert!(!error.contains("12345"), "{error}");
    let error = file("worker_concurrency = -1").unwrap_err();
    assert!(
        error.contains("expected a whole number") && !error.contains("floating"),
        "{error}"
    );
}

#[test]
fn routers_of_a_list_are_asked_in_their_order() {
    let queue = |text: &str| file(text).unwrap().routes().unwrap().queue("a.b").unwrap();
    assert_eq!(queue("task_routes = [{'a.*' = 'one'}, {'a.b' = 'two'}]"), "one");
    assert_eq!(
        queue("task_routes = [[['a.*', 'one'], ['a.b', 'two']], {'a.b' = 'three'}]"),
        "two"
    );
    assert_eq!(queue("task_routes = [['a.*', 'one'], ['a.b', 'two']]"), "two");
    assert_eq!(
        queue("task_routes = {'a.*' = 'one', 'a.b' = 'two', '*' = 'three'}"),
        "two"
    );
}

#[test]
fn defaults_are_values() {
    let defaults = defaults();
    assert_eq!(defaults.len(), SETTINGS.len());
    assert_eq!(defaults["worker_prefetch_multiplier"], 4);
    assert_eq!(defaults["task_queues"], json!(["celery"]));
    assert_eq!(defaults["task_time_limit"], Value::Null);
}

#[test]
fn hosts_are_urls_or_tables() {
    let settings = file(
        "ai_hosts = ['http://a', {url = 'http://b', kind = 'openai', weight = 2.5, max_parallel = 8, \
         headers = {X-Team = 'hunter2'}}]\n[ai_models.'m:7b']\nnum_ctx = 8192\n[[ai_budgets]]\ntenant = 'x'\ntokens = 5\n",
    )
    .unwrap();
    let hosts = &settings.ai.hosts;
    assert_eq!((hosts[0].url.as_str(), hosts[0].max_parallel), ("http://a", 4));
    assert_eq!(
        (hosts[1].weight, hosts[1].max_parallel, hosts[1].max_loaded),
        (2.5, 8, 3)
    );
    assert_eq!(settings.ai.models["m:7b"].num_ctx, Some(8192));
    assert_eq!(settings.ai.budgets[0].tokens, Some(5));
    let shown = Value::Object(settings.shown()).to_string();
    assert!(!shown.contains("hunter2") && shown.contains("X-Team"), "{shown}");
    let error = file("ai_hosts = [{url = 'http://b', wieght = 2}]").unwrap_err();
    assert!(
        error.starts_with("orchestra.toml:1: ai_hosts: ") && error.contains("unknown field `wieght`"),
        "{error}"
    );
}

#[test]
fn mistakes_are_named_with_their_line() {
    let error = |text| file(text).unwrap_err();
    assert_eq!(
        error("\nbroker_urls = 'x'"),
        "orchestra.toml:2: broker_urls: there is no such setting; did you mean broker_url?"
    );
    assert!(error("a = [").starts_with("orchestra.toml:1: "));
    assert!(
        error("worker_concurrency = 'many'").starts_with("orchestra.toml:1: worker_concurrency: \"many\" does not fit")
    );
    assert!(error("task_time_limit = -1").contains("-1 is no number of seconds"));
    assert!(error("task_time_limit = 1e300").ends_with("1e300 does not fit: 1e300 is no number of seconds"));
    assert_eq!(
        error("log_json = true\n\nworker_concurrency = 99999999999999999999\n[ai_models]\n"),
        "orchestra.toml:3: worker_concurrency: this number is too large"
    );
    assert_eq!(
        error("[beat_schedule.a]\ntask = 't'\nschedule = 5\n[beat_schedule.b]\ntask = 't'\nschedule = '* * *'"),
        "orchestra.toml:6: beat_schedule.b: schedule: a crontab has five fields \
         (minute hour day_of_month month_of_year day_of_week), \"* * *\" has 3"
    );
    assert_eq!(
        error("[beat_schedule.a]\ntask = 't'"),
        "orchestra.toml:1: beat_schedule.a: missing field `schedule`"
    );
    // All at once, each where it stands.
    assert_eq!(
        error("[broker_transport_options]\nlease = 5\nvisibility_timeout = 'x'\n[worker]\nbroker_urls = 'x'")
            .lines()
            .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>(),
        ["orchestra.toml:3 broker_transport_options", "orchestra.toml:4 worker"]
    );
    assert_eq!(
        error("[beat_schedule.a]\ntask = 't'\nschedule = 5\nkwargs = 'k'"),
        "orchestra.toml:4: beat_schedule.a: kwargs: invalid type: a text, expected a map"
    );
    let mut given = Given::default();
    let text = "\nCELERY_TASK_ACKS_LATE = true\nbeat_scheduler = 'x'\nBROKER_URL = 'x'";
    let wrong = read_file(&mut given, Path::new("f"), text).unwrap_err();
    assert!(
        wrong.starts_with("f:2: CELERY_TASK_ACKS_LATE: this is no setting here: write task_acks_late,")
            && wrong.contains("\nf:4: BROKER_URL: this is no setting here: write broker_url,")
            && !wrong.contains("beat_scheduler"),
        "{wrong}"
    );
    assert!(error("beat_schedule = 5").starts_with("orchestra.toml:1: beat_schedule: 5 does not fit"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let mut given = Given::default();
    read_file(&mut given, Path::new("f"), "broker_url = 'redis://file'").unwrap();
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let variables = [
        variable("ORCHESTRA_BROKER_URL", "redis://ours"),
        variable("CELERY_BROKER_URL", "redis://celery"),
        variable("ORCHESTRA_WORKER_CONCURRENCY", "3"),
        variable("ORCHESTRA_LOG_LEVEL", "INFO"),
        variable("OLLAMA_HOST", "http://a:1,http://b:2"),
    ];
    read_environment(&mut given, variables.into_iter()).unwrap();
    let settings = Settings::new(given).unwrap();
    assert_eq!(settings.broker_url, "redis://ours");
    assert_eq!(settings.concurrency, Some(3));
    assert_eq!(settings.log_level, "INFO");
    let urls: Vec<&str> = settings.ai.hosts.iter().map(|host| host.url.as_str()).collect();
    assert_eq!(urls, ["http://a:1", "http://b:2"]);
    let fleet = |name, value| {
        let mut given = Given::default();
        read_file(&mut given, Path::new("f"), "ai_hosts = ['http://a', 'http://b']").unwrap();
        read_environment(&mut given, [variable(name, value)].into_iter()).unwrap()
    };
    assert!(fleet("OLLAMA_HOST", "http://c")[0].contains("takes the place of ai_hosts"));
    assert!(fleet("ORCHESTRA_AI_HOSTS", "['http://c']").is_empty());
    let mut given = Given::default();
    let variables = [
        variable("CELERY_BROKER_READ_URL", "redis://read"),
        variable("CELERY_BROKER_URL", "redis://celery"),
        variable("CELERY_BROKER_WRITE_URL", "redis://write"),
    ];
    let warnings = read_environment(&mut given, variables.into_iter()).unwrap();
    assert!(warnings[0].contains("CELERY_BROKER_WRITE_URL has no effect"));
    assert_eq!(Settings::new(given).unwrap().broker_url, "redis://read");
    let read = |name, value| read_environment(&mut Given::default(), [variable(name, value)].into_iter());
    assert!(read("ORCHESTRA_BROKER_URLS", "x").unwrap()[0].ends_with("did you mean ORCHESTRA_BROKER_URL?"));
    assert!(read("ORCHESTRA_SERVICE_HOST", "10.0.0.1").unwrap().is_empty());
    assert!(
        read("ORCHESTRA_WORKER_CONCURRENCY", "x")
            .unwrap_err()
            .starts_with("environment variable ORCHESTRA_WORKER_CONCURRENCY: ")
    );
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let path = std::env::temp_dir().join(format!("orchestra-secret-{}", std::process::id()));
    std::fs::write(&path, "redis://:secret@h/0\n").unwrap();
    let read = |name: &str, path: &str| {
        let mut given = Given::default();
        let variables = [(name.to_owned(), path.to_owned())];
        read_environment(&mut given, variables.into_iter()).map(|warnings| (given, warnings))
    };
    let (given, warnings) = read("ORCHESTRA_BROKER_URL_FILE", path.to_str().unwrap()).unwrap();
    assert_eq!(Settings::new(given).unwrap().broker_url, "redis://:secret@h/0");
    assert!(warnings.is_empty());
    let missing = read("ORCHESTRA_BROKER_URL_FILE", "/no/such").unwrap_err();
    assert!(
        missing.contains("ORCHESTRA_BROKER_URL_FILE: cannot read /no/such"),
        "{missing}"
    );
    let both = ["ORCHESTRA_BROKER_URL", "ORCHESTRA_BROKER_URL_FILE"].map(|name| (name.to_owned(), "x".to_owned()));
    let error = read_environment(&mut Given::default(), both.into_iter()).unwrap_err();
    assert!(error.ends_with("say the same twice; unset one"), "{error}");
    // Somebody else's.
    assert!(read("ORCHESTRA_SERVICE_FILE", "/no/such").is_ok());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_password_in_the_name_of_a_server_is_not_told() {
    for entry in ["https://me:hunter2@api.example.com", "me:hunter2@api.example.com:80"] {
        let error = file(&format!("ai_http_hosts = ['{entry}']")).err().unwrap();
        assert!(
            error.contains("\"********@api.example.com") && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn a_text_from_the_environment_may_look_like_a_list_where_no_list_fits() {
    let set = |name: &str, value: &str| {
        let mut given = Given::default();
        read_environment(&mut given, [(name.to_owned(), value.to_owned())].into_iter()).map(|_| given)
    };
    let given = set("ORCHESTRA_SECURITY_KEY_PASSWORD", "[123]").unwrap();
    assert_eq!(given.shown()["security_key_password"], "[123]");
    let error = set("ORCHESTRA_AI_HTTP_HOSTS", "[123]").err().unwrap();
    assert!(error.contains("does not fit"), "{error}");
}
