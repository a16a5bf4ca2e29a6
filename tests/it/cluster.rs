//! A Redis Cluster of three nodes. kombu has no transport for one; a prefix with a hash tag puts all keys of a
//! deployment into one slot, which one node serves.

use crate::support::{Redis, Worker, free_port, run_python, until};

const PREFIX: &str = "{orchestra}:";

struct Cluster(Vec<Redis>);

impl Cluster {
    fn node() -> Redis {
        let port = free_port().to_string();
        Redis::start_with(&[
            &["--cluster-enabled", "yes", "--cluster-port", &port],
            &[
                "--cluster-node-timeout",
                "1000",
                "--cluster-replica-validity-factor",
                "0",
            ],
        ])
    }

    async fn start() -> Self {
        let nodes: Vec<Redis> = (0..3).map(|_| Self::node()).collect();
        let bus =
            |node: &Redis| -> String { node.command::<Vec<String>>(&["CONFIG", "GET", "cluster-port"])[1].clone() };
        for (n, node) in nodes.iter().enumerate() {
            let (from, to) = [("0", "5460"), ("5461", "10921"), ("10922", "16383")][n];
            node.command::<()>(&["CLUSTER", "ADDSLOTSRANGE", from, to]);
            node.command::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
        }
        for other in &nodes[1..] {
            nodes[0].command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &bus(other)]);
        }
        for node in &nodes {
            until("the cluster is one", async || {
                let info: String = node.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
            .await;
        }
        Self(nodes)
    }

    /// Another node, which takes the place of one when that is gone.
    async fn add_replica(&self, of: &Redis) -> Redis {
        let bus =
            |node: &Redis| -> String { node.command::<Vec<String>>(&["CONFIG", "GET", "cluster-port"])[1].clone() };
        let replica = Self::node();
        replica.command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &of.port.to_string(), &bus(of)]);
        let id: String = of.command(&["CLUSTER", "MYID"]);
        until("it knows whom to follow", async || {
            replica.try_command(&["CLUSTER", "REPLICATE", &id]).is_ok()
        })
        .await;
        until("it follows", async || {
            let info: String = replica.command(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        })
        .await;
        replica
    }

    fn slot(&self) -> String {
        self.0[0].command::<i64>(&["CLUSTER", "KEYSLOT", PREFIX]).to_string()
    }

    /// The node that has our slot, and the others.
    fn owner(&self) -> (&Redis, Vec<&Redis>) {
        let has = |node: &&Redis| node.try_command(&["EXISTS", PREFIX]).is_ok();
        let (mut owners, others): (Vec<&Redis>, Vec<&Redis>) = self.0.iter().partition(has);
        (owners.pop().unwrap(), others)
    }

    /// Moves our slot, with its keys, to another node.
    fn reshard(&self) {
        let slot = self.slot();
        let (from, others) = self.owner();
        let to = others[0];
        let id = |node: &Redis| node.command::<String>(&["CLUSTER", "MYID"]);
        to.command::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        from.command::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        loop {
            let keys: Vec<String> = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            if keys.is_empty() {
                break;
            }
            let port = to.port.to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "REPLACE", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            from.command::<()>(&words);
        }
        to.command::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
        from.command::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
}

/// Celery's client on the node that has the slot: it cannot follow it to another one.
const PROGRAM: &str = "
import sys
from celery import Celery
options = {'global_keyprefix': '{orchestra}:'}
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
app.conf.update(broker_transport_options=options, result_backend_transport_options=options)
assert app.send_task('hello.add', (2, 3)).get(timeout=30) == 5
assert app.send_task('hello.flaky', (2,)).get(timeout=30) == 2
assert [r.get(timeout=30) for r in [app.send_task('hello.nap', (10, n)) for n in range(50)]] == list(range(50))
assert app.control.ping(timeout=3)
";

#[tokio::test(flavor = "multi_thread")]
async fn one_slot_of_a_cluster_is_a_broker_and_can_move() {
    let cluster = Cluster::start().await;
    let (owner, others) = cluster.owner();
    let settings = [
        (
            "ORCHESTRA_BROKER_TRANSPORT_OPTIONS",
            "{global_keyprefix = '{orchestra}:', visibility_timeout = 2}",
        ),
        (
            "ORCHESTRA_RESULT_BACKEND_TRANSPORT_OPTIONS",
            "{global_keyprefix = '{orchestra}:'}",
        ),
    ];
    // Our worker starts at a node that has not the slot, and goes where it is told.
    let mut worker = Worker::start_with(others[0], &["-c", "4"], &settings);
    run_python(PROGRAM, &owner.url());
    cluster.reshard();
    let (now, _) = cluster.owner();
    assert_ne!(now.port, owner.port);
    run_python(PROGRAM, &now.url());
    assert!(worker.log().contains("our keys are at"), "{}", worker.log());
    until("nothing is held", async || {
        now.length("HLEN", "{orchestra}:unacked") == 0
    })
    .await;
    assert_eq!(worker.stop(), Some(0));
}

/// The node that has the slot dies, and its replica takes its place: what was confirmed before is there, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_over_and_the_work_goes_on() {
    let mut cluster = Cluster::start().await;
    let slot: usize = cluster.slot().parse().unwrap();
    let at = usize::from(slot > 5460) + usize::from(slot > 10921);
    let replica = cluster.add_replica(&cluster.0[at]).await;
    let options = "{global_keyprefix = '{orchestra}:', visibility_timeout = 2}";
    let settings = [
        ("ORCHESTRA_BROKER_TRANSPORT_OPTIONS", options),
        (
            "ORCHESTRA_RESULT_BACKEND_TRANSPORT_OPTIONS",
            "{global_keyprefix = '{orchestra}:'}",
        ),
    ];
    // The worker's URL is one of the nodes that stay.
    let mut worker = Worker::start_with(&cluster.0[(at + 1) % 3], &["-c", "2"], &settings);
    run_python(PROGRAM, &cluster.0[at].url());
    cluster.0[at].command::<i64>(&["WAIT", "1", "5000"]);
    cluster.0[at].stop();
    until("the replica serves", async || {
        replica.try_command(&["EXISTS", PREFIX]).is_ok()
    })
    .await;
    run_python(PROGRAM, &replica.url());
    until("nothing is held", async || {
        replica.length("HLEN", "{orchestra}:unacked") == 0
    })
    .await;
    assert_eq!(worker.stop(), Some(0));
}
