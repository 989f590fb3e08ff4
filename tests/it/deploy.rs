//! The unit file, the packages, the image, the compose file and the manifest, as far as they can be
//! checked without running them.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use replicator::testing::Cli;

mod package;

fn shipped(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

/// Needs `systemd-analyze`, which `tests/run` installs.
#[test]
fn the_systemd_unit_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("replicator.service");
    // `systemd-analyze` checks that the program exists, and it is not installed on this machine.
    let installed = "/usr/local/bin/replicator";
    let text = shipped("replicator.service");
    assert!(text.contains(installed));
    fs::write(&unit, text.replace(installed, env!("CARGO_BIN_EXE_replicator"))).unwrap();
    let verify = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    let printed = String::from_utf8_lossy(&verify.stderr);
    let about_it: Vec<_> = printed.lines().filter(|line| line.contains("replicator")).collect();
    assert!(verify.status.success() && about_it.is_empty(), "{printed}");
}

/// The score of `systemd-analyze`, at most 10 for no restriction. The rest is network access.
#[test]
fn the_systemd_unit_restricts_the_daemon() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/replicator.service");
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager", "--threshold=15"]).arg(unit);
    let scored = command.output().unwrap();
    assert!(scored.status.success(), "{}", String::from_utf8_lossy(&scored.stdout));
}

#[test]
fn the_containers_have_no_privileges_and_write_only_to_their_volume() {
    let compose = shipped("compose.yaml");
    // All containers use this image.
    assert_eq!(compose.matches("dockerfile:").count(), 1);
    for line in ["read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"] {
        assert!(compose.contains(line), "{line}");
    }
}

/// Compose refuses a secret that is not a file for a container whose root is read-only.
#[test]
fn only_the_instances_of_the_compose_cluster_have_a_secret_and_they_can_be_written_to() {
    let compose = shipped("compose-cluster.yaml");
    let blocks: Vec<_> = compose.split("\n\n").collect();
    let instance = blocks.iter().find(|block| block.starts_with("x-instance:")).unwrap();
    assert!(instance.contains("secrets:") && instance.contains("\n  read_only: false"));
    let others = blocks.iter().filter(|block| !block.starts_with("x-instance:"));
    assert_eq!(others.filter(|block| block.contains("  secrets:")).count(), 0);
    assert!(compose.contains("    environment: STORE_CREDENTIALS"));
    for line in ["read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"] {
        assert_eq!(compose.matches(line).count(), 2, "{line}: of the image and of the servers");
    }
}

#[test]
fn the_variables_of_the_image_exist_and_it_runs_without_privileges() {
    let dockerfile = shipped("Dockerfile");
    let cli = Cli::command();
    let known: Vec<_> = cli.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let words = dockerfile.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    // An argument of the build.
    let words = words.filter(|word| *word != "REPLICATOR_COMMIT");
    let named: Vec<_> = words.filter(|word| word.starts_with("REPLICATOR_")).collect();
    assert!(!named.is_empty());
    for variable in named {
        assert!(known.contains(&variable), "{variable}");
    }
    let user = dockerfile.lines().find(|line| line.starts_with("USER ")).unwrap();
    assert!(!user.contains("root") && !user.contains(" 0"), "{user}");
    assert!(dockerfile.contains("VOLUME /data"));
}

/// Runs a linter that `tests/run` installs from PyPI. Without it the test is skipped.
fn lint(program: &str, args: &[&str]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let Ok(output) = Command::new(program).args(args).current_dir(root).output() else {
        eprintln!("skipped: there is no {program} (tests/run installs it from PyPI)");
        return;
    };
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&printed));
}

#[test]
fn the_dockerfile_passes_its_linter() {
    lint("hadolint", &["deploy/Dockerfile"]);
}

#[test]
fn the_manifest_follows_the_schema_of_old_and_new_kubernetes() {
    for version in ["1.27.0", "1.37.0"] {
        let args = ["--strict", "--quiet", "--kubernetes-version", version];
        lint("kubernetes-validate", &[&args[..], &["deploy/kubernetes.yaml"]].concat());
    }
}

#[test]
fn the_manifest_locks_its_containers_and_uses_variables_and_probes_that_exist() {
    let manifest = shipped("kubernetes.yaml");
    let cli = Cli::command();
    let known: Vec<_> = cli.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let words = manifest.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    let of_nats = ["NATS_REPLICATOR_PASSWORD", "NATS_TRANSFER_PASSWORD", "NATS_SYSTEM_PASSWORD"];
    let named = words.filter(|word| word.contains("REPLICATOR_") && !of_nats.contains(word));
    let named: Vec<_> = named.collect();
    assert!(named.len() >= 5, "{named:?}");
    for variable in named {
        assert!(known.contains(&variable), "{variable}");
    }
    for variable in of_nats {
        assert!(shipped("nats.conf").contains(&format!("${variable}")), "{variable}");
    }
    // Two stateful sets, one of which has another container that writes its configuration.
    assert_eq!(manifest.matches("podAntiAffinity:").count(), 2);
    assert_eq!(manifest.matches("kind: PodDisruptionBudget").count(), 2);
    assert_eq!(manifest.matches("runAsNonRoot: true").count(), 2);
    assert_eq!(manifest.matches("securityContext: *locked").count(), 1);
    for line in ["readOnlyRootFilesystem: true", "capabilities: { drop: [ALL] }"] {
        assert_eq!(manifest.matches(line).count(), 2, "{line}");
    }
    // A Service that is called replicator becomes REPLICATOR_PORT, which the daemon refuses.
    assert!(manifest.contains("kind: Service\nmetadata:\n  name: replicator\n"));
    let pods = manifest.split("\n---\n").find(|part| part.contains("image: replicator\n")).unwrap();
    assert!(pods.contains("      enableServiceLinks: false\n"));
    for probe in ["path: /readyz", "path: /livez"] {
        assert!(manifest.contains(probe), "{probe}");
    }
}
