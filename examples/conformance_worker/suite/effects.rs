//! Tasks that write to Redis, callbacks of failed tasks among them.

use orchestra::task::{Context, Options, RegisterError};
use serde::Deserialize;
use serde_json::Value;

use super::named;
use crate::functions::Functions;
use crate::python::{sum, text};
use crate::store::Store;

#[derive(Deserialize)]
struct Echo {
    message: Value,
    #[serde(default = "echo_key")]
    redis_key: String,
}

fn echo_key() -> String {
    "redis-echo".into()
}

#[derive(Deserialize)]
struct Count {
    #[serde(default = "count_key")]
    redis_key: String,
}

fn count_key() -> String {
    "redis-count".into()
}

#[derive(Deserialize)]
struct GroupId {
    #[serde(rename = "_")]
    #[expect(dead_code, reason = "bound, so that a call without it is a TypeError")]
    ignored: Value,
    #[serde(default = "group_key")]
    redis_key: String,
}

fn group_key() -> String {
    "redis-group-ids".into()
}

#[derive(Deserialize)]
struct Sum {
    values: Value,
    redis_key: String,
}

#[derive(Deserialize)]
struct OldStyle {
    request_id: String,
}

#[derive(Deserialize)]
struct OldStyleWithLabel {
    request_id: String,
    label: Value,
}

#[derive(Deserialize)]
struct NewStyle {
    request: Failed,
    #[expect(dead_code, reason = "part of the call")]
    exc: Value,
    #[expect(dead_code, reason = "part of the call")]
    tb: Value,
}

#[derive(Deserialize)]
struct NewStyleWithLabel {
    request: Failed,
    #[expect(dead_code, reason = "part of the call")]
    exc: Value,
    #[expect(dead_code, reason = "part of the call")]
    tb: Value,
    label: Value,
}

/// The request of a task that failed.
#[derive(Deserialize)]
struct Failed {
    id: String,
}

pub(super) fn register(functions: &mut Functions<'_>) -> Result<(), RegisterError> {
    let store = store();
    let plain = || Options::DEFAULT;
    let own = store.clone();
    functions.add(&named("redis_echo"), plain(), move |Echo { message, redis_key }, _| {
        let store = own.clone();
        async move { Ok(store.push(&redis_key, &text(&message)).await?) }
    })?;
    let own = store.clone();
    functions.add(&named("redis_count"), plain(), move |Count { redis_key }, _| {
        let store = own.clone();
        async move { Ok(store.count(&redis_key).await?) }
    })?;
    let own = store.clone();
    functions.add(
        &named("redis_echo_group_id"),
        plain(),
        move |GroupId { redis_key, .. }, context: Context| {
            let store = own.clone();
            async move {
                let group = context.details().group.as_deref().unwrap_or("None");
                Ok(store.push(&redis_key, group).await?)
            }
        },
    )?;
    let own = store.clone();
    functions.add(
        &named("sum_and_record"),
        plain(),
        move |Sum { values, redis_key }, context: Context| {
            let store = own.clone();
            async move {
                store.push(&redis_key, context.id()).await?;
                sum(&values)
            }
        },
    )?;
    let own = store.clone();
    functions.add(
        &named("errback_old_style"),
        plain(),
        move |OldStyle { request_id }, _| {
            let store = own.clone();
            async move {
                store.count(&request_id).await?;
                Ok(request_id)
            }
        },
    )?;
    let own = store.clone();
    functions.add(
        &named("errback_old_style_with_args"),
        plain(),
        move |OldStyleWithLabel { request_id, label }, _| {
            let store = own.clone();
            async move { Ok(store.push(&request_id, &text(&label)).await?) }
        },
    )?;
    let inline = || Options {
        errback_inline: true,
        ..Options::DEFAULT
    };
    let own = store.clone();
    functions.add(
        &named("errback_new_style"),
        inline(),
        move |NewStyle { request, .. }, _| {
            let store = own.clone();
            async move {
                store.count(&request.id).await?;
                Ok(request.id)
            }
        },
    )?;
    functions.add(
        &named("errback_new_style_with_args"),
        inline(),
        move |NewStyleWithLabel { request, label, .. }, _| {
            let store = store.clone();
            async move { Ok(store.push(&request.id, &text(&label)).await?) }
        },
    )
}

/// The Redis that the suite looks into.
pub(super) fn store() -> Store {
    let variable = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (host, port) = (variable("REDIS_HOST", "127.0.0.1"), variable("REDIS_PORT", "6379"));
    Store::new(&format!("redis://{host}:{port}/0"))
}
