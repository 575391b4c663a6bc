//! What makes the images, looked at without a container engine: the Dockerfile names nothing that isn't there, and `images/build` gives the same bytes
//! twice, with a bill of materials. That containerd takes the archives (`ctr images import`) is part of every run of the scenarios.

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;
    use std::process::Command;

    use serde_json::Value;

    use crate::cluster::{checkout, output};

    fn read(name: &str) -> String {
        std::fs::read_to_string(checkout().join(name)).unwrap()
    }

    /// Instructions with their continued lines in one.
    fn instructions(dockerfile: &str) -> Vec<(String, String)> {
        let joined = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
        let joined = joined.replace("\\\n", " ");
        joined
            .lines()
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(word, rest)| (word.to_uppercase(), rest.trim().to_owned()))
            .collect()
    }

    #[test]
    fn the_dockerfile_names_only_what_is_there() {
        let (root, cargo) = (checkout(), read("Cargo.toml"));
        let all = instructions(&read("images/Dockerfile"));
        let (mut stages, mut programs) = (Vec::new(), Vec::new());
        for (word, rest) in &all {
            match word.as_str() {
                "FROM" => {
                    let words: Vec<_> = rest.split_whitespace().collect();
                    let is_known = stages.iter().any(|s| s == words[0]) || words[0] == "scratch";
                    assert!(
                        is_known || words[0].contains(':') && !words[0].ends_with(":latest"),
                        "{rest}: a tag that says which"
                    );
                    if let [_, _, name] = words[..] {
                        stages.push(name.to_owned());
                    }
                }
                "COPY" => {
                    let (from, paths): (Vec<_>, Vec<_>) = rest.split_whitespace().partition(|word| word.starts_with("--"));
                    match from.first().and_then(|flag| flag.strip_prefix("--from=")) {
                        Some(stage) => assert!(stages.iter().any(|s| s == stage), "{rest}: no stage {stage}"),
                        None => {
                            for path in &paths[..paths.len() - 1] {
                                assert!(root.join(path).exists(), "{rest}: {path} is not in the checkout");
                            }
                        }
                    }
                }
                "RUN" => {
                    let words: Vec<_> = rest.split_whitespace().collect();
                    for pair in words.windows(2) {
                        match pair {
                            ["--profile", profile] => assert!(cargo.contains(&format!("[profile.{profile}]")), "{rest}"),
                            ["--bin", program] => programs.push((*program).to_owned()),
                            _ => {}
                        }
                    }
                    for word in words.iter().filter(|word| word.starts_with("images/")) {
                        assert!(root.join(word).is_file(), "{rest}: {word} is not in the checkout");
                    }
                    if rest.contains("apt-get install") {
                        assert!(rest.contains("--no-install-recommends") && rest.contains("rm -rf /var/lib/apt/lists"), "{rest}");
                    }
                }
                _ => {}
            }
        }
        assert_eq!(programs, ["tiderace", "tiderace-operator"]);
        let files = [read("worker/Cargo.toml"), read("operator/Cargo.toml")].concat();
        for program in &programs {
            let is_binary =
                files.contains(&format!("name = \"{program}\"")) || root.join(format!("operator/src/bin/{program}.rs")).is_file();
            assert!(is_binary, "there is no program {program}");
            assert!(
                all.contains(&("ENTRYPOINT".to_owned(), format!("[\"/usr/local/bin/{program}\"]"))),
                "{program} isn't started"
            );
        }
        let version = cargo.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.split('"').next()).unwrap();
        assert!(
            all.iter().any(|(word, rest)| word == "FROM" && rest.starts_with(&format!("rust:{version}"))),
            "built by Rust {version}"
        );
        let user = read("images/build").lines().find_map(|line| line.strip_prefix("USER = ").map(str::to_owned)).unwrap();
        let users: Vec<_> = all.iter().filter(|(word, _)| word == "USER").map(|(_, user)| user.as_str()).collect();
        assert_eq!(users, [format!("{user}:{user}"), format!("{user}:{user}")], "never root");
    }

    fn build(programs: &Path, out: &Path) -> String {
        let mut command = Command::new(checkout().join("images/build"));
        command.arg("tiderace-operator").arg("--from").arg(programs).arg("--out").arg(out);
        output(command.env("SOURCE_DATE_EPOCH", "1795262400")).unwrap()
    }

    #[test]
    fn an_image_is_the_same_twice_and_says_what_is_in_it() {
        if Command::new("python3").arg("--version").output().is_err() {
            eprintln!("SKIPPED: images/build needs python3, which is not installed");
            return;
        }
        let folder = std::env::temp_dir().join(format!("tiderace-images-{}", std::process::id()));
        let (programs, one, two) = (folder.join("programs"), folder.join("one"), folder.join("two"));
        std::fs::create_dir_all(&programs).unwrap();
        // Any file will do: it is packed, not run.
        std::fs::copy("/proc/self/exe", programs.join("tiderace-operator")).unwrap();
        let (first, second) = (build(&programs, &one), build(&programs, &two));
        let digest = |line: &str| line.split("sha256:").nth(1).unwrap().trim().to_owned();
        assert_eq!(digest(&first), digest(&second));
        let archive = |folder: &Path| std::fs::read(folder.join("tiderace-operator.tar")).unwrap();
        assert!(archive(&one) == archive(&two), "the archives differ");

        let listing = output(Command::new("tar").arg("-tf").arg(one.join("tiderace-operator.tar"))).unwrap();
        for file in ["oci-layout", "index.json", "manifest.json"] {
            assert!(listing.lines().any(|line| line == file), "{listing}");
        }
        let text = std::fs::read_to_string(one.join("tiderace-operator.spdx.json")).unwrap();
        let sbom: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(sbom["spdxVersion"], "SPDX-2.3");
        let names: Vec<_> = sbom["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        for wanted in ["tiderace-operator", "kube-client", "rustls", "serde_json"] {
            assert!(names.contains(&wanted), "{wanted} is not in the bill of materials");
        }
        assert!(!names.contains(&"proptest"), "what only tests use is not in the program");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
