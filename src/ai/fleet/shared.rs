//! The ledger in Redis: two scripts, eight keys, one channel.

use std::collections::{BTreeMap, HashMap};

use redis::{Script, Value};
use serde_json::json;
use tokio::sync::{Mutex, OnceCell, mpsc};

use super::breaker::Breaker;
use super::catalog::Catalog;
use super::ledger::{Book, Entry, LEASE, Memory, PATIENCE, Take};
use super::rates;
use super::routing::Waiting;
use crate::conn::{Endpoint, Error, Link, LinkOptions, Push};

/// Writes an entry and reads the whole.
///
/// KEYS: places (sorted by their end), waiting (hash by worker), breakers (hash by host), memory (hash by host and
/// model), loads (hash by model), catalogs (hash by host, and their version), turns (hash by host: how many loads were
/// ordered there), paces (hash by host and model). ARGV: the entry as JSON, the channel. Gives the time, the calls by
/// host and model, the hashes, and the catalogs if they changed.
const WRITE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local e = cjson.decode(ARGV[1])
local news = #e.breakers + #e.catalogs
for _, p in ipairs(e.drop) do
  if p[2] > 0 then redis.call('ZADD', KEYS[1], 'XX', now + p[2], p[1]) else news = news + redis.call('ZREM', KEYS[1], p[1]) end
end
for _, p in ipairs(e.renew) do redis.call('ZADD', KEYS[1], now + e.lease, p) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if e.waiting == '' then redis.call('HDEL', KEYS[2], e.worker) else redis.call('HSET', KEYS[2], e.worker, string.format('%d', now + e.patience) .. ' ' .. e.waiting) end
for _, b in ipairs(e.breakers) do redis.call('HSET', KEYS[3], b[1], b[2]) end
for _, m in ipairs(e.warmed) do redis.call('HSET', KEYS[4], m, 'w' .. string.format('%d', now)) end
for _, m in ipairs(e.cooled) do redis.call('HSET', KEYS[4], m, 'g' .. string.format('%d', now)) end
for _, l in ipairs(e.loads) do
  local before = tonumber(redis.call('HGET', KEYS[5], l[1]) or l[2])
  redis.call('HSET', KEYS[5], l[1], string.format('%d', (before * 3 + l[2]) / 4))
end
for _, p in ipairs(e.paces) do
  local before = tonumber(string.match(redis.call('HGET', KEYS[8], p[1]) or '', '^%d+') or p[2])
  redis.call('HSET', KEYS[8], p[1], string.format('%d %d', (before * 3 + p[2]) / 4, now))
end
for _, c in ipairs(e.catalogs) do redis.call('HSET', KEYS[6], c[1], string.format('%d', now) .. ' ' .. c[2]) end
local version = tonumber(redis.call('HGET', KEYS[6], '') or 0)
if #e.catalogs > 0 then version = redis.call('HINCRBY', KEYS[6], '', 1) end
local waiting, others = {}, false
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local gap = string.find(all[i + 1], ' ', 1, true)
  if tonumber(string.sub(all[i + 1], 1, gap - 1)) <= now then redis.call('HDEL', KEYS[2], all[i])
  else
    waiting[#waiting + 1] = string.sub(all[i + 1], gap + 1)
    others = others or all[i] ~= e.worker
  end
end
if news > 0 and others then redis.call('PUBLISH', ARGV[2], e.worker) end
local busy, counts = {}, {}
for _, p in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local of = string.sub(p, string.find(p, '\t', 1, true) + 1)
  busy[of] = (busy[of] or 0) + 1
end
for of, count in pairs(busy) do counts[#counts + 1] = of; counts[#counts + 1] = tostring(count) end
local catalogs = {}
if version ~= e.seen then catalogs = redis.call('HGETALL', KEYS[6]) end
return {now, counts, waiting, redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4]), redis.call('HGETALL', KEYS[5]), version, catalogs, redis.call('HGETALL', KEYS[7]), redis.call('HGETALL', KEYS[8])}
";

/// Takes places within the limits, on hosts whose memory is still what the choice was made for: a load that another
/// worker ordered meanwhile, or a call for the model that would go, refuses the place. KEYS: places, memory, turns.
/// ARGV: what is wanted as JSON, the channel. Gives a one for each that was had.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local e = cjson.decode(ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local hosts, models, both, had = {}, {}, {}, {}
local function count(host, model)
  hosts[host] = (hosts[host] or 0) + 1
  models[model] = (models[model] or 0) + 1
  both[host .. '\t' .. model] = (both[host .. '\t' .. model] or 0) + 1
end
for _, p in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local host, model = string.match(p, '^[^\t]*\t([^\t]*)\t(.*)$')
  count(host, model)
end
local ordered, refused, news = {}, {}, false
for i, t in ipairs(e.takes) do
  local on, of = hosts[t.host] or 0, models[t.model] or 0
  local turn = tonumber(redis.call('HGET', KEYS[3], t.host) or 0) - (ordered[t.host] or 0)
  local as_seen = turn == t.turn and not refused[t.host]
  for _, victim in ipairs(t.instead) do as_seen = as_seen and not both[t.host .. '\t' .. victim] end
  if as_seen and on < t.host_limit and (t.model_limit == 0 or of < t.model_limit) then
    count(t.host, t.model)
    redis.call('ZADD', KEYS[1], now + e.lease, t.place)
    if t.cold then
      redis.call('HSET', KEYS[2], t.host .. '\t' .. t.model, 'l' .. string.format('%d', now))
      redis.call('HINCRBY', KEYS[3], t.host, 1)
      ordered[t.host] = (ordered[t.host] or 0) + 1
      news = true
    end
    for _, victim in ipairs(t.instead) do redis.call('HSET', KEYS[2], t.host .. '\t' .. victim, 'g' .. string.format('%d', now)) end
    had[i] = 1
  else
    had[i] = 0
    refused[t.host] = refused[t.host] or t.cold
  end
end
if news then redis.call('PUBLISH', ARGV[2], e.worker) end
return had
";

/// A ledger in Redis; connected when it is first used.
#[derive(Debug)]
pub(super) struct Shared {
    endpoint: Endpoint,
    prefix: String,
    open: OnceCell<Open>,
}

#[derive(Debug)]
struct Open {
    link: Link,
    write: Script,
    take: Script,
    heard: Mutex<mpsc::Receiver<Push>>,
}

impl Shared {
    pub(super) fn new(endpoint: Endpoint, prefix: &str) -> Self {
        Self {
            endpoint,
            prefix: format!("{prefix}orchestra:fleet:"),
            open: OnceCell::new(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The connection, for what else the AI layer keeps in Redis.
    pub(super) async fn link(&self) -> Result<&Link, Error> {
        Ok(&self.open().await?.link)
    }

    async fn open(&self) -> Result<&Open, Error> {
        let connect = async || {
            let link = Link::connect(&self.endpoint, LinkOptions::default()).await?;
            let (write, take) = (Script::new(WRITE), Script::new(TAKE));
            let own = [write.clone(), take.clone()];
            link.register(own.into_iter().chain(rates::scripts())).await?;
            // Without news, freed places are found by looking.
            let _ = link.subscribe_to(&self.key("news")).await;
            let heard = Mutex::new(link.pushes());
            Ok(Open {
                link,
                write,
                take,
                heard,
            })
        };
        self.open.get_or_try_init(connect).await
    }

    async fn run(&self, script: fn(&Open) -> &Script, keys: &[&str], arguments: &[String]) -> Result<Value, Error> {
        let open = self.open().await?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(script(open).get_hash()).arg(keys.len());
        for key in keys {
            command.arg(self.key(key));
        }
        command.arg(arguments);
        open.link.query(&command).await
    }

    pub(super) async fn write(&self, entry: &Entry) -> Result<Book, Error> {
        let text = |value: &serde_json::Value| value.to_string();
        let memory = |of: &[(String, String)]| -> Vec<String> {
            of.iter().map(|(host, model)| format!("{host}\t{model}")).collect()
        };
        let waiting = if entry.waiting.is_empty() {
            String::new()
        } else {
            text(&json!(entry.waiting))
        };
        let argument = json!({
            "worker": entry.worker,
            "lease": LEASE,
            "patience": PATIENCE,
            "renew": entry.renew,
            "drop": entry.drop,
            "waiting": waiting,
            "breakers": entry.breakers.iter().map(|(host, one)| (host, text(&json!(one)))).collect::<Vec<_>>(),
            "warmed": memory(&entry.warmed),
            "cooled": memory(&entry.cooled),
            "loads": entry.loads,
            "paces": entry.paces.iter().map(|(host, model, pace)| (format!("{host}\t{model}"), pace)).collect::<Vec<_>>(),
            "catalogs": entry.catalogs.iter().map(|(host, one)| (host, text(&json!(one)))).collect::<Vec<_>>(),
            "seen": entry.seen,
        });
        let keys = [
            "places", "waiting", "breakers", "memory", "loads", "catalogs", "turns", "paces",
        ];
        let answer = self
            .run(|open| &open.write, &keys, &[argument.to_string(), self.key("news")])
            .await?;
        Ok(read(answer, entry.seen))
    }

    pub(super) async fn take(&self, worker: &str, takes: &[Take]) -> Result<Vec<bool>, Error> {
        let argument = json!({"lease": LEASE, "worker": worker, "takes": takes}).to_string();
        let arguments = [argument, self.key("news")];
        let had = self
            .run(|open| &open.take, &["places", "memory", "turns"], &arguments)
            .await?;
        Ok(list(had).iter().map(|one| *one == Value::Int(1)).collect())
    }

    pub(super) async fn claim(&self, what: &str, for_ms: u64) -> bool {
        let Ok(open) = self.open().await else { return false };
        let mut command = redis::cmd("SET");
        command.arg(self.key(what)).arg(1).arg("NX").arg("PX").arg(for_ms);
        let answer: Result<Value, _> = open.link.query(&command).await;
        matches!(answer, Ok(Value::Okay))
    }

    pub(super) async fn hold(&self, what: &str, for_ms: u64) {
        let Ok(open) = self.open().await else { return };
        let mut command = redis::cmd("SET");
        command.arg(self.key(what)).arg(1).arg("PX").arg(for_ms);
        // A claim that is lost is taken by another; the work is done twice and no worse for it.
        let _ = open.link.query::<Value>(&command).await;
    }

    pub(super) async fn news(&self) {
        match self.open.get() {
            Some(open) => {
                if open.heard.lock().await.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// The answer of `WRITE`. What cannot be read is left out: another version of this program may have written it.
fn read(answer: Value, seen: u64) -> Book {
    let mut parts = list(answer).into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let now = number(&next());
    let busy = pairs(next())
        .filter_map(|(of, count)| {
            let (host, model) = of.split_once('\t')?;
            Some((host.to_owned(), model.to_owned(), count.parse().ok()?))
        })
        .collect();
    let waiting = list(next())
        .into_iter()
        .filter_map(|calls| serde_json::from_str::<Vec<Waiting>>(&text(calls)).ok())
        .flatten()
        .collect();
    let breakers = pairs(next())
        .filter_map(|(host, one)| Some((host, serde_json::from_str::<Breaker>(&one).ok()?)))
        .collect();
    let memory = pairs(next())
        .filter_map(|(of, what)| {
            let (host, model) = of.split_once('\t')?;
            let at = what.get(1..)?.parse().ok()?;
            let what = match what.chars().next()? {
                'w' => Memory::Warm(at),
                'l' => Memory::Loading(at),
                _ => Memory::Gone(at),
            };
            Some(((host.to_owned(), model.to_owned()), what))
        })
        .collect();
    let loads: BTreeMap<String, u64> = pairs(next())
        .filter_map(|(model, took)| Some((model, took.parse().ok()?)))
        .collect();
    let version = number(&next());
    let catalogs: HashMap<String, Catalog> = pairs(next())
        .filter_map(|(host, one)| {
            let (written, one) = one.split_once(' ')?;
            let mut catalog: Catalog = serde_json::from_str(one).ok()?;
            if catalog.at == 0 {
                catalog.at = written.parse().ok()?;
            }
            Some((host, catalog))
        })
        .collect();
    let turns = pairs(next())
        .filter_map(|(host, turn)| Some((host, turn.parse().ok()?)))
        .collect();
    let paces = pairs(next())
        .filter_map(|(of, measured)| {
            let (host, model) = of.split_once('\t')?;
            let (pace, at) = measured.split_once(' ')?;
            Some((
                (host.to_owned(), model.to_owned()),
                (pace.parse().ok()?, at.parse().ok()?),
            ))
        })
        .collect();
    Book {
        now,
        busy,
        waiting,
        breakers,
        memory,
        loads,
        paces,
        catalogs: (version != seen).then_some(catalogs),
        version,
        turns,
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

fn pairs(value: Value) -> impl Iterator<Item = (String, String)> {
    let mut values = list(value).into_iter().map(text);
    std::iter::from_fn(move || Some((values.next()?, values.next()?)))
}

fn text(value: Value) -> String {
    redis::from_redis_value(value).unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Int(number) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}
