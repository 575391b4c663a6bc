//! The test cluster: what `e2e/cluster/tidecluster` does, and a client of its API server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A cluster on this machine. Only one can run at a time.
#[derive(Clone)]
pub struct Cluster {
    root: PathBuf,
    client: Client,
}

/// Where the checkout is: the folder above this crate's, as it was built.
#[must_use]
pub fn checkout() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().unwrap_or(crate_folder).to_path_buf()
}

/// Folder for what outlives a run and is not part of the sources: images, dumps of failures.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("tiderace-e2e"))
}

/// Runs a program to its end and gives its stdout; an error holds its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, "")
}

/// The same, with text for its stdin.
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} can't be started"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let text = input.to_owned();
    // Written by a thread of its own: a program that answers before it has read all would block both.
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let done = child.wait_with_output()?;
    let _ = writer.join(); // a program that doesn't read its input to the end says so itself, or doesn't mind
    ensure!(
        done.status.success(),
        "{command:?} ended with {}: {}{}",
        done.status,
        String::from_utf8_lossy(&done.stderr),
        String::from_utf8_lossy(&done.stdout)
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Why no cluster can run here, or `None`.
#[must_use]
pub fn obstacle() -> Option<String> {
    let in_path = |program: &str| {
        let administrators = ["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
        std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).chain(administrators).any(|folder| folder.join(program).exists()))
            .unwrap_or_default()
    };
    // A process of root can read what only root may.
    let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0).unwrap_or_default();
    if !root {
        return Some("it needs root: namespaces, mounts and cgroups are made".into());
    }
    if !in_path("go") {
        return Some("Go 1.26 is missing: https://go.dev/dl".into());
    }
    let missing: Vec<_> = [
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("iptables", "iptables"),
        ("/usr/lib/cni/bridge", "containernetworking-plugins"),
        ("prometheus", "prometheus"),
    ]
    .into_iter()
    .filter(|(program, _)| if program.starts_with('/') { !Path::new(program).exists() } else { !in_path(program) })
    .map(|(_, package)| package)
    .collect();
    (!missing.is_empty())
        .then(|| format!("packages are missing: apt-get install -y --no-install-recommends {}", missing.join(" ")))
}

fn tidecluster(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(root.join("e2e/cluster/tidecluster"));
    command.args(arguments);
    command
}

impl Cluster {
    /// Starts the cluster with that many nodes, or what is missing of it.
    pub async fn up(nodes: usize) -> Result<Self> {
        let root = checkout();
        output(&mut tidecluster(&root, &["up", "--nodes", &nodes.to_string()])).context("the cluster can't be started")?;
        Self::connect().await
    }

    /// The cluster that runs already.
    pub async fn connect() -> Result<Self> {
        let root = checkout();
        let path = output(&mut tidecluster(&root, &["kubeconfig"]))?;
        let kubeconfig = Kubeconfig::read_from(path.trim()).context("no cluster is running")?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // Scenarios that take the API server away want to see that soon.
        config.connect_timeout = Some(std::time::Duration::from_secs(5));
        config.read_timeout = Some(std::time::Duration::from_secs(60));
        Ok(Self { root, client: Client::try_from(config)? })
    }

    /// Removes the cluster and all that belongs to it.
    pub fn down() -> Result<()> {
        output(&mut tidecluster(&checkout(), &["down"])).map(drop)
    }

    /// A client with the administrator's rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The checkout that this cluster is driven from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs `tidecluster ARG…`. It blocks a thread of the runtime's pool for blocking work.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with_input(arguments, String::new()).await
    }

    /// The same, with text for its stdin.
    pub async fn run_with_input(&self, arguments: &[&str], input: String) -> Result<String> {
        let mut command = tidecluster(&self.root, arguments);
        tokio::task::spawn_blocking(move || output_with_input(&mut command, &input)).await?
    }

    /// Runs `kubectl ARG…`.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run(&[&["kubectl"], arguments].concat()).await
    }

    /// Runs `helm ARG…`.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run(&[&["helm"], arguments].concat()).await
    }

    /// Runs a program inside a node or, named `control`, the control plane.
    pub async fn on_node(&self, node: &str, command: &[&str]) -> Result<String> {
        self.run(&[&["node", "exec", node, "--"], command].concat()).await
    }

    /// Sends SIGKILL to the processes of a pod's containers whose name begins with `name`. The machine's process table has those of all nodes;
    /// a process is known by its cgroup, which holds the pod's uid.
    pub fn kill_in_pod(&self, pod_uid: &str, name: &str) -> Result<()> {
        let mut killed = 0;
        for pid in pod_processes(pod_uid, name)? {
            output(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
            killed += 1;
        }
        ensure!(killed > 0, "no process {name} in the pod {pod_uid}");
        Ok(())
    }

    /// Sends a signal, `-STOP` say, to the same.
    pub fn signal_in_pod(&self, pod_uid: &str, name: &str, signal: &str) -> Result<()> {
        let pids = pod_processes(pod_uid, name)?;
        ensure!(!pids.is_empty(), "no process {name} in the pod {pod_uid}");
        for pid in pids {
            output(Command::new("kill").args([signal, &pid.to_string()]))?;
        }
        Ok(())
    }
}

/// The processes of a pod whose name begins with `name`, on whichever node.
pub fn pod_processes(pod_uid: &str, name: &str) -> Result<Vec<u32>> {
    if pod_uid.len() < 32 {
        bail!("{pod_uid:?} is no uid of a pod");
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(pid) = folder.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else { continue };
        // Processes end while they are looked at: what can't be read is gone.
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        if read("comm").starts_with(name) && read("cgroup").contains(pod_uid) {
            found.push(pid);
        }
    }
    Ok(found)
}
