//! Whoever is killed at whatever step: after `gc` the host is clean and nothing is lost. On a machine in small.

use wrenn_tests::host::TestHost;
use wrenn_tests::killing::{Operation, Victim, kill_at_every_step};

wrenn_tests::on_a_toy![
    a_create_that_is_killed_at_any_step_leaves_nothing,
    a_launch_that_is_killed_at_any_step_leaves_nothing,
    a_pause_that_is_killed_at_any_step_is_given_back_or_finished,
    a_watch_that_is_killed_at_any_step_of_its_pause_is_given_back_or_finished,
    a_resume_that_is_killed_at_any_step_leaves_the_pause,
    a_snapshot_that_is_killed_at_any_step_leaves_the_guest_running,
    a_snapshot_of_a_pause_that_is_killed_at_any_step_leaves_the_pause,
    a_removal_that_is_killed_at_any_step_is_finished,
    an_operation_whose_vmm_dies_at_any_step_comes_to_an_end_and_loses_no_pause,
    an_operation_whose_page_server_dies_at_any_step_comes_to_an_end_and_loses_no_pause,
];

fn kill(host: &TestHost, operation: Operation, through: &[&str]) {
    kill_at_every_step(host, operation, Victim::Supervisor, through);
}

fn a_create_that_is_killed_at_any_step_leaves_nothing(host: &TestHost) {
    kill(host, Operation::Create, &["net.create", "launch.boot", "guest.ready"]);
}

fn a_launch_that_is_killed_at_any_step_leaves_nothing(host: &TestHost) {
    kill(host, Operation::Launch, &["net.create", "uffd.serve", "launch.restore", "guest.init"]);
}

fn a_pause_that_is_killed_at_any_step_is_given_back_or_finished(host: &TestHost) {
    kill(host, Operation::Pause, &["launch.snapshot", "snap.pack", "net.remove", "cow.remove", "publish"]);
}

fn a_watch_that_is_killed_at_any_step_of_its_pause_is_given_back_or_finished(host: &TestHost) {
    kill(host, Operation::Expire, &["launch.snapshot", "snap.pack", "net.remove", "cow.remove", "publish"]);
}

fn a_resume_that_is_killed_at_any_step_leaves_the_pause(host: &TestHost) {
    kill(host, Operation::Resume, &["cow.restore", "net.create", "uffd.serve", "launch.restore"]);
}

fn a_snapshot_that_is_killed_at_any_step_leaves_the_guest_running(host: &TestHost) {
    kill(host, Operation::Snapshot, &["launch.snapshot", "cow.flatten", "snap.pack", "snap.template"]);
}

fn a_snapshot_of_a_pause_that_is_killed_at_any_step_leaves_the_pause(host: &TestHost) {
    kill(host, Operation::SnapshotPaused, &["cow.flatten", "snap.template"]);
}

fn a_removal_that_is_killed_at_any_step_is_finished(host: &TestHost) {
    kill(host, Operation::Remove, &["launch.stop", "net.remove", "cow.delete"]);
}

fn an_operation_whose_vmm_dies_at_any_step_comes_to_an_end_and_loses_no_pause(host: &TestHost) {
    use Operation::{Create, Launch, Pause, Resume, Snapshot};
    for operation in [Create, Launch, Pause, Resume, Snapshot] {
        kill_at_every_step(host, operation, Victim::Vmm, &[]);
    }
}

fn an_operation_whose_page_server_dies_at_any_step_comes_to_an_end_and_loses_no_pause(host: &TestHost) {
    for operation in [Operation::Launch, Operation::Pause, Operation::Resume, Operation::Snapshot] {
        kill_at_every_step(host, operation, Victim::PageServer, &[]);
    }
}
