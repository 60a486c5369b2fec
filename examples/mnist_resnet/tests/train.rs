//! The example as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

#[test]
fn three_epochs_of_two_workers_reach_98_percent() {
    let storage = tempfile::tempdir().unwrap();
    let out =
        example(&["train", "configs/mnist_2workers.ron", "--progress", "none", "--json"], storage.path());
    let told = succeeded(&out);
    let accuracy = told.split("\"accuracy\":").nth(1).and_then(|rest| rest.split([',', '}']).next()).unwrap();
    let accuracy: f64 = accuracy.trim().parse().unwrap();
    assert!(accuracy >= 0.98, "{told}");
}

#[test]
fn two_batches_of_one_worker_try_everything() {
    let storage = tempfile::tempdir().unwrap();
    let out = example(
        &["train", "configs/mnist.ron", "--fast-dev-run", "--progress", "none", "--json"],
        storage.path(),
    );
    assert!(
        succeeded(&out).contains("\"step\": 2") || succeeded(&out).contains("\"step\":2"),
        "{}",
        succeeded(&out)
    );
}

#[test]
fn the_configurations_are_right() {
    for name in ["mnist", "mnist_2workers", "mnist_gpu"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mnist_resnet"));
        let out = command
            .current_dir(root())
            .args(["config", "check", &format!("configs/{name}.ron")])
            .output()
            .unwrap();
        succeeded(&out);
    }
}

#[test]
fn bad_values_are_answered_with_what_to_do() {
    let storage = tempfile::tempdir().unwrap();
    for (change, code, expected) in [
        ("data=/no/such/folder", 1, "/no/such/folder has neither train-images-idx3-ubyte"),
        ("batch_size=0", 1, "a batch of 0 samples; give at least 1"),
        ("batch_sise=2", 2, "batch_size"),
    ] {
        let out = example(&["train", "configs/mnist.ron", change, "--progress", "none"], storage.path());
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.code() == Some(code) && text.contains(expected),
            "{change}: {:?} {text}",
            out.status
        );
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn example(arguments: &[&str], storage: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnist_resnet"));
    command.current_dir(root()).args(arguments).arg("--storage").arg(storage).env("OMP_NUM_THREADS", "1");
    command.output().unwrap()
}

fn succeeded(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
