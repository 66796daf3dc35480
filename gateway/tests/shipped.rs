//! The files of `conf/` say the truth: the full one lists every option with its true default, and the starting points
//! start as they are.

// Helpers of tests are outside clippy's leave for tests.
#![allow(clippy::panic)]

use std::path::{Path, PathBuf};

use mixgate::{Config, Gateway, Running};

#[test]
fn full_file_lists_every_option_with_its_true_default() {
    let checked = mixgate_conf::check_shipped::<Config>(include_str!("../../conf/mixgate.toml"));
    if let Err(wrong) = checked {
        panic!("{}", wrong.join("\n"));
    }
}

#[test]
fn full_file_as_it_is_changes_nothing() {
    let config = load("mixgate", &[]);
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[tokio::test]
async fn starting_points_start_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = |name: &str| folder.path().join(name).display().to_string();

    let directory =
        start("directory", &[("directory.listen", "127.0.0.1:0"), ("directory.home", &home("directory"))]).await;
    assert!(directory.directory.is_some());

    let node = start(
        "node",
        &[("node.listen", "127.0.0.1:0"), ("node.home", &home("node")), ("network.directory", "http://127.0.0.1:9/")],
    )
    .await;
    assert_eq!(node.descriptor.as_ref().expect("a node").nickname().as_str(), "MyNickname");

    let gateway = start(
        "gateway",
        &[
            ("gateway.home", &home("gateway")),
            ("gateway.smtp.listen", "127.0.0.1:0"),
            ("gateway.pop.listen", "127.0.0.1:0"),
            ("network.directory", "http://127.0.0.1:9/"),
        ],
    )
    .await;
    assert!(gateway.smtp.is_some() && gateway.pop3.is_some());

    for running in [gateway, node, directory] {
        running.stop().await;
    }
}

#[test]
fn exit_that_a_newcomer_takes_in_says_to_recipients_how_to_get_no_more() {
    let text = std::fs::read_to_string(shipped("node")).expect("a shipped file");
    let exit = text.lines().skip_while(|line| *line != "# [node.smtp]").take_while(|line| *line != "#");
    let exit: Vec<_> = exit.filter_map(|line| line.strip_prefix("# ")).collect();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text.clone() + "\n" + &exit.join("\n")).expect("a file that was made");
    let config: Config =
        mixgate_conf::load(Some(file.path()), std::iter::empty(), &[], &[]).unwrap_or_else(|why| panic!("{why}"));
    assert!(config.node.smtp.enabled && config.node.smtp.mail.abuse.is_some(), "{exit:?}");
    assert!(config.node.smtp.opt_out.mail.is_some(), "{exit:?}");
    let keys: Vec<_> = mixgate::check::warnings(&config, None).iter().map(|warning| warning.key).collect();
    assert!(!keys.contains(&"node.smtp.opt_out"), "{keys:?}");
}

/// Starts a shipped file, with `changes` for what a test cannot share: ports and folders.
async fn start(name: &str, changes: &[(&str, &str)]) -> Running {
    Gateway::start(load(name, changes)).await.unwrap_or_else(|why| panic!("{name}.toml: {why:?}"))
}

fn load(name: &str, changes: &[(&str, &str)]) -> Config {
    let changes: Vec<_> = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let file = shipped(name);
    mixgate_conf::load(Some(&file), std::iter::empty(), &[], &changes).unwrap_or_else(|why| panic!("{why}"))
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf").join(format!("{name}.toml"))
}
