//! The example as a user runs it: it learns, and it does so in the same way every time.

use std::process::{Command, Output, Stdio};

#[test]
fn three_epochs_reach_98_percent_and_print_the_same_numbers_twice() {
    // One thread each, so that the two share the cores of a small machine.
    let runs = [(); 2].map(|()| {
        let mut command = example(&["--threads", "1"]);
        command.env("OMP_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let [first, second] = runs.map(|child| succeeded(child.wait_with_output().unwrap()));
    let accuracy: f64 = first.split_whitespace().next_back().unwrap().parse().unwrap();
    assert!(accuracy >= 0.98, "accuracy {accuracy}:\n{first}");
    assert_eq!(first.lines().count(), 4, "{first}");
    assert_eq!(first, second);
}

#[test]
fn bad_arguments_are_answered_with_what_to_do() {
    for (arguments, expected) in [
        (["--data", "/no/such/folder"], "--data: /no/such/folder has neither train-images-idx3-ubyte"),
        (["--batch-size", "9001"], "--batch-size 9001 is larger than the 9000 images"),
        (["--epochs", "0"], "--epochs and --batch-size must be at least 1"),
    ] {
        let out = example(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
}

fn example(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnist_resnet"));
    command.args(arguments);
    command
}

fn succeeded(out: Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
