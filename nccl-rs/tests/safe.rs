//! The safe layer against a fake NCCL: what it calls, in which order, with what, and what it makes of the answers.

mod common;

use std::time::{Duration, Instant};

use common::{Fake, floats};
use nccl_rs::{
    Code, Communicator, Config, CtaPolicy, DataType, DeviceSliceMut, Error, MemoryStatistic, Nccl, ReduceOp,
    ShrinkMode, Stream, UniqueId, Version,
};

const S: Stream = Stream::DEFAULT;

fn plain() -> Config {
    Config::default()
}

fn impatient() -> Config {
    Config { timeout: Duration::from_millis(100), ..Config::default() }
}

#[test]
fn a_missing_library_is_a_typed_error_that_names_every_attempt() {
    let Err(Error::NotAvailable { tried }) = Nccl::open("/nowhere/libnccl.so.2") else { panic!() };
    assert_eq!(tried.len(), 1);
    let text = Error::NotAvailable { tried }.to_string();
    assert!(text.contains("/nowhere/libnccl.so.2") && text.contains("NCCL_LIB"), "{text}");
}

#[test]
fn a_library_that_is_not_nccl_or_too_old_is_refused() {
    let stranger = Fake::with_source(0, "int add(int a, int b) { return a + b; }");
    assert!(matches!(Nccl::open(&stranger.path), Err(Error::MissingSymbol { symbol: "ncclGetVersion", .. })));
    let old = Fake::with_source(0, "int ncclGetVersion(int *v) { *v = 21805; return 0; }");
    let Err(Error::TooOld { found, needs, .. }) = Nccl::open(&old.path) else { panic!() };
    assert_eq!((found, needs), (Version::new(2, 18, 5), Version::new(2, 19, 0)));
    let torso = Fake::with_source(0, "int ncclGetVersion(int *v) { *v = 22000; return 0; }");
    assert!(matches!(
        Nccl::open(&torso.path),
        Err(Error::MissingSymbol { symbol: "ncclGetErrorString", .. })
    ));
}

#[test]
fn version_codes_of_both_schemes() {
    for (code, version) in
        [(2708, Version::new(2, 7, 8)), (21903, Version::new(2, 19, 3)), (23007, Version::new(2, 30, 7))]
    {
        assert_eq!(Version::from_code(code), version);
        assert_eq!(version.code(), code);
    }
    assert_eq!(Fake::new(22809).nccl().version().to_string(), "2.28.9");
}

#[test]
fn the_configuration_has_the_size_and_version_each_library_knows() {
    for (version, size, told) in [
        (21903, 48, 21903),
        (22602, 48, 22602),
        (22703, 72, 22703),
        (22809, 80, 22809),
        (22902, 88, 22902),
        (23003, 96, 23003),
        (23203, 96, 23005),
    ] {
        let fake = Fake::new(version);
        let nccl = fake.nccl();
        let config = Config { ctas: Some((2, 8)), net_name: Some("Socket".into()), ..plain() };
        let comm = Communicator::init(&nccl, 2, 1, &nccl.unique_id().unwrap(), &config).unwrap();
        let expected = format!(
            "init config size={size} magic=cafebeef version={told} blocking=0 ctas=2..8 net=Socket name=-"
        );
        assert!(fake.calls().contains(&expected), "{version}: {:?}", fake.calls());
        assert_eq!((comm.rank(), comm.world_size(), comm.device()), (1, 2, 3));
    }
}

#[test]
fn settings_newer_than_the_library_are_refused_not_ignored() {
    let fake = Fake::new(22602);
    let nccl = fake.nccl();
    let id = nccl.unique_id().unwrap();
    let named = Config { comm_name: Some("gradients".into()), ..plain() };
    let error = Communicator::init(&nccl, 1, 0, &id, &named).unwrap_err();
    assert_eq!(
        error,
        Error::NotSupported {
            feature: "Config::comm_name",
            needs: Version::new(2, 27, 3),
            found: Version::new(2, 26, 2),
        }
    );
    let policy = Config { cta_policy: Some(CtaPolicy::Zero), ..plain() };
    assert!(matches!(Communicator::init(&nccl, 1, 0, &id, &policy), Err(Error::NotSupported { .. })));
    for ctas in [(0, 4), (5, 4)] {
        let error =
            Communicator::init(&nccl, 1, 0, &id, &Config { ctas: Some(ctas), ..plain() }).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    assert!(fake.calls().is_empty(), "NCCL was asked nothing: {:?}", fake.calls());

    let newer = Fake::new(22703);
    let nccl = newer.nccl();
    Communicator::init(&nccl, 1, 0, &nccl.unique_id().unwrap(), &named).unwrap();
    assert!(newer.calls()[1].ends_with("name=gradients"), "{:?}", newer.calls());
}

#[test]
fn functions_newer_than_the_library_are_not_supported() {
    let fake = Fake::new(21903);
    let comm = fake.communicator(4, 1, &plain());
    let supported = |result: nccl_rs::Result<()>| match result {
        Err(Error::NotSupported { feature, needs, found }) => {
            assert_eq!(found, Version::new(2, 19, 3));
            (feature, needs)
        }
        other => panic!("{other:?}"),
    };
    let mut memory = [0.0; 4];
    let shrunk = comm.shrink(&[2], ShrinkMode::Abort, None).map(drop);
    assert_eq!(supported(shrunk), ("ncclCommShrink", Version::new(2, 27, 3)));
    assert_eq!(supported(comm.revoke()), ("ncclCommRevoke", Version::new(2, 28, 7)));
    assert_eq!(supported(comm.grow(5, None, None).map(drop)), ("ncclCommGrow", Version::new(2, 29, 2)));
    assert_eq!(supported(comm.suspend()), ("ncclCommSuspend", Version::new(2, 29, 7)));
    let window = comm.register_window(floats(&mut memory), true).map(drop);
    assert_eq!(supported(window), ("ncclCommWindowRegister", Version::new(2, 27, 3)));
    let id = UniqueId::from_bytes([1; 128]);
    let scalable = Communicator::init_scalable(&fake.nccl(), 4, 0, &[id, id], &plain()).map(drop);
    assert_eq!(supported(scalable), ("ncclCommInitRankScalable", Version::new(2, 23, 4)));
    // SAFETY: the fake never touches it.
    let fp8 = unsafe { DeviceSliceMut::from_raw(memory.as_mut_ptr().cast(), 4, DataType::F8E4M3) };
    assert_eq!(supported(comm.broadcast(fp8, 0, S)).1, Version::new(2, 24, 3));
    assert!(!fake.nccl().has("ncclCommShrink") && fake.nccl().has("ncclAllReduce"));
}

#[test]
fn the_id_travels_as_bytes() {
    let fake = Fake::new(21903);
    let nccl = fake.nccl();
    let id = nccl.unique_id().unwrap();
    let copy = UniqueId::from_bytes(id.to_bytes());
    assert_eq!(id, copy);
    assert_eq!(format!("{id:?}"), "UniqueId(..)");
    Communicator::init(&nccl, 3, 2, &copy, &plain()).unwrap();
    assert_eq!(fake.calls()[0], "init world=3 rank=2 id=-100,25");
}

#[test]
fn a_nonblocking_init_is_polled_to_its_end() {
    let fake = Fake::new(22809);
    fake.busy(20);
    let comm = fake.communicator(2, 0, &Config::default());
    comm.destroy().unwrap();
    assert_eq!(fake.calls(), ["finalize rank=0", "destroy rank=0"]);
}

#[test]
fn an_init_that_never_ends_is_aborted_at_the_deadline() {
    let fake = Fake::new(22809);
    fake.busy(i32::MAX);
    let (nccl, start) = (fake.nccl(), Instant::now());
    let error = Communicator::init(&nccl, 2, 1, &nccl.unique_id().unwrap(), &impatient()).unwrap_err();
    assert!(matches!(error, Error::Timeout { rank: 1, .. }), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(100) && start.elapsed() < Duration::from_secs(20));
    assert_eq!(fake.calls().last().unwrap(), "abort rank=1");
}

#[test]
fn an_init_that_fails_in_the_background_keeps_the_code_and_frees_the_handle() {
    let fake = Fake::new(22809);
    fake.busy(3);
    fake.async_error(6);
    let nccl = fake.nccl();
    let error = Communicator::init(&nccl, 2, 1, &nccl.unique_id().unwrap(), &plain()).unwrap_err();
    let Error::Nccl { code, rank, ref message, .. } = error else { panic!("{error}") };
    assert!(code == Code::REMOTE && code.is_remote() && rank == Some(1));
    assert_eq!(message, "remote process exited: the last detail");
    assert!(error.to_string().contains("ncclRemoteError (6)"), "{error}");
    assert_eq!(fake.calls().last().unwrap(), "abort rank=1");
}

#[test]
fn collectives_pass_on_count_type_operation_root_and_stream() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let (mut a, mut b) = ([0.0; 6], [0.0; 12]);
    let (one, two) = (floats(&mut a), floats(&mut b));
    // SAFETY: the fake only prints it.
    let stream = unsafe { Stream::from_raw(0x50 as *mut _) };
    comm.all_reduce(one.as_slice(), one, ReduceOp::Mean, stream).unwrap();
    comm.reduce(one.as_slice(), Some(one), ReduceOp::Max, 0, S).unwrap();
    comm.reduce(one.as_slice(), None, ReduceOp::Min, 1, S).unwrap();
    comm.broadcast(one, 1, S).unwrap();
    comm.reduce_scatter(two.as_slice(), one, ReduceOp::Product, S).unwrap();
    comm.all_gather(one.as_slice(), two, S).unwrap();
    comm.all_to_all(one.as_slice(), one, S).unwrap();
    comm.gather(one.as_slice(), Some(two), 0, S).unwrap();
    comm.scatter(Some(two.as_slice()), one, 0, S).unwrap();
    assert_eq!(
        fake.calls(),
        [
            "all_reduce n=6 t=7 op=4 stream=0x50 in_place=1",
            "reduce n=6 t=7 op=2 root=0 recv=1",
            "reduce n=6 t=7 op=3 root=1 recv=0",
            "broadcast n=6 t=7 root=1 in_place=1",
            "reduce_scatter n=6 t=7 op=1",
            "all_gather n=6 t=7",
            "all_to_all n=3 t=7",
            "gather n=6 t=7 root=0 recv=1",
            "scatter n=6 t=7 root=0 send=1",
        ]
    );
}

#[test]
fn before_2_28_all_to_all_gather_and_scatter_are_groups_of_sends_and_receives() {
    let fake = Fake::new(22703);
    let comm = fake.communicator(2, 0, &plain());
    let mut memory = [0.0; 8];
    fake.base(memory.as_ptr());
    let all = floats(&mut memory[..]);
    let half = floats(&mut memory[..4]);
    comm.all_to_all(all.as_slice(), all, S).unwrap();
    let group = ["send at=0 n=4 t=7 peer=0", "recv at=0 n=4 t=7 peer=0"];
    let rest = ["send at=16 n=4 t=7 peer=1", "recv at=16 n=4 t=7 peer=1"];
    assert_eq!(fake.calls(), [&["group_start"], &group[..], &rest, &["group_end"]].concat());
    fake.clear();
    comm.gather(half.as_slice(), Some(all), 0, S).unwrap();
    assert_eq!(fake.calls(), ["group_start", group[0], group[1], rest[1], "group_end"]);
    fake.clear();
    comm.scatter(Some(all.as_slice()), half, 0, S).unwrap();
    assert_eq!(fake.calls(), ["group_start", group[0], rest[0], group[1], "group_end"]);
    fake.clear();
    fake.fail("ncclSend", 3);
    let error = comm.all_to_all(all.as_slice(), all, S).unwrap_err();
    assert!(matches!(error, Error::Nccl { function: "ncclSend", code: Code::INTERNAL, .. }), "{error}");
    assert_eq!(fake.calls(), ["group_start", "group_end"], "the group is closed even so");
}

#[test]
fn buffers_that_do_not_fit_never_reach_nccl() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let (mut a, mut b) = ([0.0; 5], [0.0; 6]);
    let (five, six) = (floats(&mut a), floats(&mut b));
    // SAFETY: the fake never touches it.
    let halves = unsafe { DeviceSliceMut::from_raw(b.as_mut_ptr().cast(), 6, DataType::F16) };
    // SAFETY: as above.
    let endless = unsafe { DeviceSliceMut::from_raw(b.as_mut_ptr().cast(), usize::MAX / 2, DataType::F32) };
    let refused = [
        comm.all_reduce(five.as_slice(), six, ReduceOp::Sum, S),
        comm.all_reduce(six.as_slice(), halves, ReduceOp::Sum, S),
        comm.reduce_scatter(six.as_slice(), five, ReduceOp::Sum, S),
        comm.all_gather(five.as_slice(), six, S),
        comm.all_gather(endless.as_slice(), six, S),
        comm.all_to_all(five.as_slice(), five, S),
        comm.reduce(five.as_slice(), None, ReduceOp::Sum, 0, S),
        comm.gather(five.as_slice(), None, 0, S),
        comm.scatter(None, five, 0, S),
        comm.broadcast(five, 2, S),
        comm.broadcast(endless, 1, S),
        comm.send(five.as_slice(), 2, S),
        comm.recv(five, 9, S),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::InvalidArgument { .. })), "{index}: {result:?}");
    }
    assert!(fake.calls().is_empty(), "{:?}", fake.calls());
}

#[test]
fn a_group_waits_once_at_its_end_for_every_member() {
    let fake = Fake::new(22809);
    let (first, second) = (fake.communicator(2, 0, &plain()), fake.communicator(2, 1, &plain()));
    let mut memory = [0.0; 2];
    let data = floats(&mut memory);
    fake.busy(5);
    let group = fake.nccl().group().unwrap();
    first.send(data.as_slice(), 1, S).unwrap();
    second.recv(data, 0, S).unwrap();
    assert!(!first.check().unwrap(), "nothing has waited yet");
    group.end().unwrap();
    assert!(first.check().unwrap() && second.check().unwrap());
    assert_eq!(
        fake.calls(),
        ["group_start", "send at=-1 n=2 t=7 peer=1", "recv at=-1 n=2 t=7 peer=0", "group_end"]
    );
}

#[test]
fn groups_do_not_nest_and_what_must_wait_stays_out() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let nccl = fake.nccl();
    let group = nccl.group().unwrap();
    assert!(matches!(nccl.group(), Err(Error::InvalidArgument { .. })));
    assert!(matches!(comm.split(Some(0), 0, None), Err(Error::InvalidArgument { .. })));
    assert!(matches!(comm.revoke(), Err(Error::InvalidArgument { .. })));
    drop(group);
    assert_eq!(fake.calls(), ["group_start", "group_end"]);
    nccl.group().unwrap().end().unwrap();
}

#[test]
fn an_abort_inside_a_group_waits_for_the_group_to_end() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let mut memory = [0.0; 2];
    let data = floats(&mut memory);
    let group = fake.nccl().group().unwrap();
    comm.send(data.as_slice(), 1, S).unwrap();
    comm.abort_handle().abort("tired").unwrap();
    assert!(!fake.calls().contains(&"abort rank=0".to_owned()), "NCCL still holds the handle");
    let error = comm.recv(data, 1, S).unwrap_err();
    assert!(matches!(&error, Error::Closed { reason, .. } if reason == "tired"), "{error}");
    assert!(matches!(group.end(), Err(Error::Closed { .. })));
    assert_eq!(fake.calls().last().unwrap(), "abort rank=0");
}

#[test]
fn a_group_is_estimated_without_being_launched() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let mut memory = [0.0; 2];
    let group = fake.nccl().group().unwrap();
    comm.broadcast(floats(&mut memory), 0, S).unwrap();
    assert_eq!(group.estimate().unwrap(), 12.5);
    assert_eq!(fake.calls().last().unwrap(), "simulate size=24 magic=74685283");
    let old = Fake::new(21903);
    let group = old.nccl().group().unwrap();
    assert!(matches!(group.estimate(), Err(Error::NotSupported { .. })));
    assert_eq!(old.calls(), ["group_start", "group_end"], "NCCL's depth is balanced");
}

#[test]
fn a_peer_lost_in_the_background_shows_in_check_and_in_the_next_wait() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    assert!(comm.check().unwrap());
    fake.async_error(6);
    assert!(matches!(comm.check(), Err(Error::Nccl { code: Code::REMOTE, rank: Some(0), .. })));
    fake.busy(2);
    let mut memory = [0.0; 2];
    let error = comm.broadcast(floats(&mut memory), 0, S).unwrap_err();
    assert!(matches!(error, Error::Nccl { code: Code::REMOTE, .. }), "{error}");
    comm.abort("peer lost").unwrap();
    assert_eq!(fake.calls().last().unwrap(), "abort rank=0");
}

#[test]
fn a_stuck_operation_ends_at_the_deadline_and_can_be_aborted_from_another_thread() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 1, &impatient());
    fake.busy(i32::MAX);
    let mut memory = [0.0; 2];
    let data = floats(&mut memory);
    let error = comm.all_reduce(data.as_slice(), data, ReduceOp::Sum, S).unwrap_err();
    assert!(matches!(error, Error::Timeout { operation: "all_reduce", rank: 1, .. }), "{error}");
    drop(comm);

    let patient = fake_patient(&fake);
    let handle = patient.abort_handle();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| patient.all_reduce(data.as_slice(), data, ReduceOp::Sum, S));
        while !fake.calls().iter().any(|call| call.starts_with("all_reduce")) {
            std::thread::yield_now();
        }
        handle.abort("peer 0 was lost").unwrap();
        let error = waiter.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Closed { reason, .. } if reason == "peer 0 was lost"), "{error}");
    });
    handle.abort("again").unwrap();
    assert!(matches!(patient.check(), Err(Error::Closed { .. })));
    drop(patient);
    let aborts = fake.calls().iter().filter(|call| call.starts_with("abort")).count();
    assert_eq!(aborts, 1, "freed once: {:?}", fake.calls());
}

/// A communicator that would wait a minute.
fn fake_patient(fake: &Fake) -> Communicator {
    fake.busy(0);
    let comm = fake.communicator(2, 1, &Config::default());
    fake.busy(i32::MAX);
    comm
}

#[test]
fn dropping_aborts_and_destroying_finalizes() {
    let fake = Fake::new(22809);
    drop(fake.communicator(2, 0, &plain()));
    assert_eq!(fake.calls(), ["abort rank=0"]);
    let comm = fake.communicator(2, 0, &plain());
    fake.fail("ncclCommFinalize", 6);
    assert!(matches!(comm.destroy(), Err(Error::Nccl { function: "ncclCommFinalize", .. })));
    assert_eq!(fake.calls(), ["abort rank=0"], "what cannot be finalized is aborted");
}

#[test]
fn a_split_waits_for_a_child_that_appears_late() {
    let fake = Fake::new(22809);
    for polls in [0, 7] {
        fake.busy(0);
        let comm = fake.communicator(4, 2, &plain());
        fake.busy(polls);
        let child = comm.split(Some(5), -1, None).unwrap().unwrap();
        assert_eq!((child.rank(), child.world_size()), (0, 1), "NCCL numbers the child");
        assert_eq!(fake.calls(), ["split color=5 key=-1", "split config inherited"]);
        assert!(comm.split(None, 0, Some(&plain())).unwrap().is_none());
        assert!(fake.calls().contains(&"split color=-1 key=0".to_owned()));
        fake.busy(0);
        child.destroy().unwrap();
    }
}

#[test]
fn the_timeout_can_be_changed_later() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 1, &plain());
    comm.set_timeout(Duration::from_millis(50));
    fake.busy(i32::MAX);
    let start = Instant::now();
    let error = comm.broadcast(floats(&mut [0.0; 2]), 0, S).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "the configuration said a minute");
}

#[test]
fn a_split_that_never_ends_times_out() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(4, 2, &impatient());
    fake.never_child();
    let error = comm.split(Some(0), 0, None).unwrap_err();
    assert!(matches!(error, Error::Timeout { operation: "ncclCommSplit", rank: 2, .. }), "{error}");
}

#[test]
fn survivors_shrink_after_a_loss() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(4, 2, &plain());
    for wrong in [&[][..], &[2], &[4]] {
        assert!(matches!(comm.shrink(wrong, ShrinkMode::Abort, None), Err(Error::InvalidArgument { .. })));
    }
    fake.async_error(6);
    assert!(comm.check().is_err());
    fake.busy(4);
    let smaller = comm.shrink(&[1], ShrinkMode::Abort, None).unwrap();
    assert_eq!((smaller.rank(), smaller.world_size()), (1, 3));
    assert_eq!(fake.calls(), ["shrink n=1 first=1 flags=1", "shrink config inherited"]);
}

#[test]
fn a_revoked_communicator_is_freed_without_finalizing() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    fake.busy(3);
    comm.revoke().unwrap();
    comm.free_revoked().unwrap();
    assert_eq!(fake.calls(), ["revoke flags=0", "destroy rank=0"]);
}

#[test]
fn a_clique_grows() {
    let fake = Fake::new(23003);
    let comm = fake.communicator(2, 0, &plain());
    let id = comm.grow_id().unwrap();
    fake.busy(3);
    let bigger = comm.grow(3, Some(&id), None).unwrap();
    assert_eq!((bigger.rank(), bigger.world_size()), (0, 3));
    let newcomer = Communicator::join(&fake.nccl(), 3, 2, &id, &plain()).unwrap();
    assert_eq!((newcomer.rank(), newcomer.world_size()), (2, 3));
    assert!(matches!(comm.grow(2, None, None), Err(Error::InvalidArgument { .. })));
    let grows: Vec<_> = fake.calls().into_iter().filter(|call| call.starts_with("grow old")).collect();
    assert_eq!(grows, ["grow old=1 world=3 id=9 rank=-1", "grow old=0 world=3 id=9 rank=2"]);
}

#[test]
fn several_ids_and_memory_management_where_the_version_has_them() {
    let fake = Fake::new(22907);
    let nccl = fake.nccl();
    let ids = [UniqueId::from_bytes([4; 128]), UniqueId::from_bytes([5; 128])];
    let comm = Communicator::init_scalable(&nccl, 8, 7, &ids, &plain()).unwrap();
    assert_eq!(fake.calls()[0], "init_scalable world=8 rank=7 ids=2 first=4");
    fake.clear();
    comm.suspend().unwrap();
    comm.resume().unwrap();
    assert_eq!(comm.memory(MemoryStatistic::Total).unwrap(), 1003);
    assert_eq!(fake.calls(), ["suspend flags=1", "resume"]);
    assert!(matches!(
        Communicator::init_scalable(&nccl, 8, 7, &[], &plain()),
        Err(Error::InvalidArgument { .. })
    ));
}

#[test]
fn memory_and_registrations_end_when_dropped_and_not_after_the_communicator() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 0, &plain());
    let memory = fake.nccl().alloc(64).unwrap();
    assert!(memory.len() == 64 && !memory.is_empty());
    // SAFETY: it is kept until the end of the test.
    let slice = unsafe { DeviceSliceMut::from_raw(memory.as_ptr(), 16, DataType::F32) };
    drop(comm.register(slice).unwrap());
    fake.busy(3);
    drop(comm.register_window(slice, true).unwrap().unwrap());
    let noted = [
        "mem_alloc 64",
        "register bytes=64",
        "deregister 77",
        "window bytes=64 flags=1",
        "window_deregister 88",
    ];
    assert_eq!(fake.calls(), noted);
    fake.null_window();
    assert!(comm.register_window(slice, false).unwrap().is_none());
    let late = comm.register(slice).unwrap();
    drop(comm);
    fake.clear();
    drop(late);
    drop(memory);
    assert_eq!(fake.calls(), ["mem_free"]);
}

#[test]
fn a_failing_call_keeps_function_code_words_and_rank() {
    let fake = Fake::new(22809);
    let comm = fake.communicator(2, 1, &plain());
    fake.fail("ncclAllReduce", 5);
    let mut memory = [0.0; 2];
    let data = floats(&mut memory);
    let error = comm.all_reduce(data.as_slice(), data, ReduceOp::Sum, S).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ncclAllReduce failed on rank 1: ncclInvalidUsage (5): some nccl error: the last detail"
    );
    fake.fail("ncclGetUniqueId", 2);
    let error = fake.nccl().unique_id().unwrap_err();
    assert!(matches!(error, Error::Nccl { function: "ncclGetUniqueId", code: Code::SYSTEM, rank: None, .. }));
}

#[test]
fn ranks_that_do_not_exist_are_refused() {
    let fake = Fake::new(22809);
    let nccl = fake.nccl();
    let id = nccl.unique_id().unwrap();
    for (world, rank) in [(2, 2), (0, 0)] {
        let error = Communicator::init(&nccl, world, rank, &id, &plain()).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
}
