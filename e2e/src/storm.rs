//! Chaos by chance: jobs are changed, suspended, deleted and made again while workers, operators, the API server, controllers and nodes are killed, in an
//! order that a seed gives. All the while no job may have two workers; at the end each must be as its manifest says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::install;
use crate::job::{API_VERSION, Job, endless, manifest, with};
use crate::space::Space;
use crate::wait::{secs, until};

const JOBS: usize = 4;
/// How often the machine's processes are looked at.
const LOOK: Duration = Duration::from_millis(150);
/// A node is away for so long at most.
const NODE_AWAY: Duration = secs(45);
/// How long the cluster and the jobs have at the end.
const CALM: Duration = secs(300);

/// Numbers by a seed: SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// What a job is to be at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Running(u64),
    Suspended(u64),
    Gone,
}

struct Storm {
    space: Space,
    chance: Chance,
    wanted: Vec<Wanted>,
    /// The node that is away, since when, and how it comes back.
    away: Option<(String, Instant, &'static str)>,
    next_first: u64,
    start: Instant,
}

/// Raises the storm for so long; an error when something is not as it must be.
pub async fn run(cluster: &Cluster, minutes: u64, seed: u64) -> Result<()> {
    println!("chaos: {minutes} minutes, --seed {seed}");
    let space = Space::create(cluster, "storm").await?;
    let chance = Chance(seed);
    let mut storm = Storm {
        space: space.clone(),
        chance,
        wanted: vec![Wanted::Gone; JOBS],
        away: None,
        next_first: 1,
        start: Instant::now(),
    };
    let watch = Rc::new(Watch::default());
    let watching = tokio::task::spawn_local(Rc::clone(&watch).go_on());
    let outcome = storm.rage(secs(minutes * 60), &watch).await;
    let back = storm.bring_node_back().await;
    let calm = match (outcome, back) {
        (Ok(()), Ok(())) => storm.calm().await,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    watching.abort();
    watch.verdict()?;
    if let Err(error) = calm {
        println!("{}", crate::dump::summary(&space).await);
        if let Ok(folder) = crate::dump::write(&space).await {
            println!("chaos: more in {}", folder.display());
        }
        return Err(error.context(format!("chaos with --seed {seed}")));
    }
    println!("chaos: {} looks at processes, no job had two workers; all jobs are as they should be", watch.looks.get());
    space.delete().await
}

/// Looks at the machine's processes: a worker is known by its program and its pod's name.
#[derive(Default)]
struct Watch {
    looks: Cell<u64>,
    wrong: RefCell<Vec<String>>,
}

impl Watch {
    async fn go_on(self: Rc<Self>) {
        loop {
            match workers() {
                Ok(found) => {
                    self.looks.set(self.looks.get() + 1);
                    for (pod, pids) in found.iter().filter(|(_, pids)| pids.len() > 1) {
                        // A process that ends while the next one begins may be seen half: look again before it is told.
                        let again = workers().ok().and_then(|found| found.get(pod).cloned()).unwrap_or_default();
                        let both: Vec<_> = pids.iter().filter(|pid| again.contains(pid)).collect();
                        if both.len() > 1 {
                            self.wrong.borrow_mut().push(format!("{pod} has the processes {both:?}"));
                        }
                    }
                }
                Err(error) => self.wrong.borrow_mut().push(format!("processes can't be looked at: {error:#}")),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn verdict(&self) -> Result<()> {
        let wrong = self.wrong.borrow();
        ensure!(wrong.is_empty(), "{} times a job had two workers: {:?}", wrong.len(), wrong.iter().take(5).collect::<Vec<_>>());
        ensure!(self.looks.get() > 0, "nobody looked");
        Ok(())
    }
}

/// Processes of workers by the pod's name. Other processes of the pod (threads' names, init) don't run the program `serve`.
fn workers() -> Result<BTreeMap<String, Vec<u32>>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(pid) = folder.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else { continue };
        // Processes end while they are looked at: what can't be read is gone.
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap_or_default();
        if read("comm") != b"tiderace\n" || !read("cmdline").split(|b| *b == 0).any(|word| word == b"serve") {
            continue;
        }
        let environment = read("environ");
        let name = environment.split(|b| *b == 0).find_map(|line| line.strip_prefix(b"HOSTNAME="));
        if let Some(name) = name.map(|n| String::from_utf8_lossy(n).into_owned()).filter(|name| name.starts_with("storm-")) {
            found.entry(name).or_default().push(pid);
        }
    }
    Ok(found)
}

impl Storm {
    fn name(at: usize) -> String {
        format!("storm-{at}")
    }

    fn job(&self, at: usize) -> Job {
        Job::named(&self.space, &Self::name(at))
    }

    fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.start.elapsed().as_secs_f64());
    }

    async fn rage(&mut self, time: Duration, watch: &Watch) -> Result<()> {
        for at in 0..JOBS {
            self.make(at).await?;
        }
        while self.start.elapsed() < time {
            if self.away.as_ref().is_some_and(|(_, since, _)| since.elapsed() > NODE_AWAY) {
                self.bring_node_back().await?;
            }
            let at = self.chance.below(JOBS);
            match self.chance.below(20) {
                0..=4 => self.change(at).await?,
                5 | 6 => self.toggle(at).await?,
                7 => self.remove(at).await?,
                8 | 9 => self.kill_worker(at).await,
                10 => self.delete_pod(at).await,
                11 | 12 => self.kill_operator().await,
                13 | 14 => self.kill_component().await?,
                15 | 16 => self.break_node().await?,
                17 => self.kill_containerd().await?,
                _ => self.delete_owned(at).await,
            }
            watch.verdict()?;
            let pause = Duration::from_millis(500 + self.chance.next() % 5000);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// What a user does, again and again while the API server is away.
    async fn user(&self, what: &str, act: impl AsyncFn() -> Result<()>) -> Result<()> {
        until(what.to_owned(), secs(120), async || act().await).await
    }

    async fn make(&mut self, at: usize) -> Result<()> {
        let first = self.next_first;
        self.next_first += 1_000_000;
        self.say(&format!("{} is made, from {first} on", Self::name(at)));
        let mut manifest = manifest(&Self::name(at), &endless(first));
        if at % 2 == 1 {
            manifest = with(manifest, "/deletion", json!({"timeoutSeconds": 10}));
        }
        self.user("a job is applied", async || self.space.apply(&manifest).await.map(drop)).await?;
        self.wanted[at] = Wanted::Running(first);
        Ok(())
    }

    async fn change(&mut self, at: usize) -> Result<()> {
        if self.wanted[at] == Wanted::Gone {
            // One that is still on its way out takes no new manifest.
            return match self.space.api(API_VERSION, "StreamingJob").get_opt(&Self::name(at)).await {
                Ok(None) => self.make(at).await,
                Ok(Some(_)) | Err(_) => Ok(()),
            };
        }
        let first = self.next_first;
        self.next_first += 1_000_000;
        self.say(&format!("{} counts from {first} on", Self::name(at)));
        let job = self.job(at);
        self.user("a job is changed", async || job.patch(json!({"sql": {"inline": endless(first)}})).await.map(drop)).await?;
        self.wanted[at] = match self.wanted[at] {
            Wanted::Suspended(_) => Wanted::Suspended(first),
            Wanted::Running(_) | Wanted::Gone => Wanted::Running(first),
        };
        Ok(())
    }

    async fn toggle(&mut self, at: usize) -> Result<()> {
        let (state, wanted) = match self.wanted[at] {
            Wanted::Running(first) => ("Suspended", Wanted::Suspended(first)),
            Wanted::Suspended(first) => ("Running", Wanted::Running(first)),
            Wanted::Gone => return Ok(()),
        };
        self.say(&format!("{} is to be {state}", Self::name(at)));
        let job = self.job(at);
        self.user("a job's state is changed", async || job.patch(json!({"state": state})).await.map(drop)).await?;
        self.wanted[at] = wanted;
        Ok(())
    }

    async fn remove(&mut self, at: usize) -> Result<()> {
        if self.wanted[at] == Wanted::Gone {
            return Ok(());
        }
        self.say(&format!("{} is deleted", Self::name(at)));
        let api = self.space.api(API_VERSION, "StreamingJob");
        self.user("a job is deleted", async || match api.delete(&Self::name(at), &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        })
        .await?;
        self.wanted[at] = Wanted::Gone;
        Ok(())
    }

    /// Breakage is tried once: what isn't there can't be broken.
    fn tried(&self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.say(what),
            Err(_) => self.say(&format!("({what}: nothing there)")),
        }
    }

    async fn kill_worker(&mut self, at: usize) {
        let outcome = async {
            let uid = self.job(at).worker().await?.uid().context("no uid")?;
            self.space.cluster().kill_in_pod(&uid, "tiderace")
        }
        .await;
        self.tried(&format!("the worker of {} is killed", Self::name(at)), outcome);
    }

    async fn delete_pod(&mut self, at: usize) {
        let outcome = self.job(at).delete_pod().await.map(drop);
        self.tried(&format!("the pod of {} is deleted", Self::name(at)), outcome);
    }

    async fn kill_operator(&mut self) {
        let outcome = async {
            let leader = install::leader(self.space.cluster()).await?;
            self.space.cluster().kill_in_pod(&leader.uid().context("no uid")?, "tiderace-operat")
        }
        .await;
        self.tried("the leading operator is killed", outcome);
    }

    async fn kill_component(&mut self) -> Result<()> {
        let all = ["kube-apiserver", "kube-apiserver", "kube-controller", "kube-scheduler", "etcd"];
        let which = all[self.chance.below(all.len())];
        self.say(&format!("{which} is killed"));
        // The kernel keeps 15 characters of a name; that one has ended already is all right.
        let _ = self.space.cluster().on_node("control", &["pkill", "-KILL", "-f", &format!("^[^ ]*{which}")]).await;
        Ok(())
    }

    async fn break_node(&mut self) -> Result<()> {
        if self.away.is_some() {
            return self.bring_node_back().await;
        }
        let nodes: Vec<String> =
            match Api::<k8s_openapi::api::core::v1::Node>::all(self.space.client()).list(&Default::default()).await {
                Ok(nodes) => nodes.items.iter().map(ResourceExt::name_any).collect(),
                Err(_) => return Ok(()),
            };
        ensure!(!nodes.is_empty(), "there are no nodes");
        let node = nodes[self.chance.below(nodes.len())].clone();
        let (verb, back) = if self.chance.below(2) == 0 { ("kill", "start") } else { ("partition", "heal") };
        self.say(&format!("node {verb} {node}"));
        self.space.cluster().run(&["node", verb, &node]).await?;
        self.away = Some((node, Instant::now(), back));
        Ok(())
    }

    async fn bring_node_back(&mut self) -> Result<()> {
        let Some((node, _, back)) = self.away.take() else { return Ok(()) };
        self.say(&format!("node {back} {node}"));
        let cluster = self.space.cluster().clone();
        // It needs the API server, which may have been killed just now.
        until(format!("node {back} {node}"), secs(120), async || cluster.run(&["node", back, &node]).await.map(drop)).await
    }

    async fn kill_containerd(&mut self) -> Result<()> {
        let node = format!("node-{}", 1 + self.chance.below(3));
        if self.away.as_ref().is_some_and(|(away, ..)| *away == node) {
            return Ok(());
        }
        self.say(&format!("containerd of {node} is killed"));
        let _ = self.space.cluster().on_node(&node, &["pkill", "-KILL", "-x", "containerd"]).await;
        Ok(())
    }

    async fn delete_owned(&mut self, at: usize) {
        let name = Self::name(at);
        let kinds = [
            ("v1", "Service", format!("{name}-workers")),
            ("v1", "Secret", format!("{name}-worker-tls")),
            ("v1", "Secret", format!("{name}-ca")),
            ("networking.k8s.io/v1", "NetworkPolicy", name.clone()),
            ("apps/v1", "StatefulSet", name.clone()),
            ("v1", "ServiceAccount", name.clone()),
        ];
        let (api_version, kind, object) = &kinds[self.chance.below(kinds.len())];
        let outcome = self.space.delete_object(api_version, kind, object).await;
        self.tried(&format!("the {kind} {object} is deleted"), outcome);
    }

    /// Nothing is broken any more: every job becomes what its manifest says.
    async fn calm(&mut self) -> Result<()> {
        self.say("calm");
        let cluster = self.space.cluster().clone();
        until("the API server answers and an operator leads", CALM, async || {
            let ready = install::operator_pods(&cluster).await?;
            ensure!(!ready.is_empty(), "no operator");
            install::leader(&cluster).await.map(drop)
        })
        .await?;
        for at in 0..JOBS {
            let (job, wanted) = (self.job(at), self.wanted[at]);
            match wanted {
                Wanted::Running(first) => {
                    job.ready_within("Running", CALM).await.with_context(|| format!("{} is to be {wanted:?}", Self::name(at)))?;
                    let numbers = job.row(first).await?;
                    if let Some(old) = numbers.iter().find(|n| **n < first || **n >= first + 1_000_000) {
                        bail!("{} wrote {old}, and counts from {first} on", Self::name(at));
                    }
                    ensure!(job.pods().await?.len() == 1, "{} has {} pods", Self::name(at), job.pods().await?.len());
                }
                Wanted::Suspended(_) => {
                    job.ready_within("Suspended", CALM)
                        .await
                        .with_context(|| format!("{} is to be {wanted:?}", Self::name(at)))?;
                    ensure!(job.pods().await?.is_empty(), "{} is suspended and has pods", Self::name(at));
                }
                Wanted::Gone => job.gone(CALM).await?,
            }
            self.say(&format!("{} is {wanted:?}, as it should be", Self::name(at)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_storm() {
        let numbers = |seed| {
            let mut chance = Chance(seed);
            (0..50).map(|_| chance.below(20)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert!(numbers(7).iter().all(|n| *n < 20));
    }
}
