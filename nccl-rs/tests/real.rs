//! The real library, where there is one: set `NCCL_LIB` to a libnccl.so.2, for example one unpacked from the
//! nvidia-nccl-cu13 wheel. Nothing here needs a GPU. Without a library the test says so and passes.

use nccl_rs::{Code, Communicator, Config, Error, Nccl, UniqueId, result::OLDEST};

#[test]
fn the_real_library_loads_describes_itself_and_fails_politely_without_a_gpu() {
    let nccl = match Nccl::load() {
        Ok(nccl) => nccl,
        Err(Error::NotAvailable { tried }) => {
            eprintln!("skipped: no NCCL here ({})", Error::NotAvailable { tried });
            return;
        }
        Err(other) => panic!("{other}"),
    };
    eprintln!("{nccl:?}");
    assert!(nccl.version() >= OLDEST);
    let words = nccl.api().describe(Code::INVALID_ARGUMENT);
    assert!(words.starts_with("invalid argument"), "{words}");
    for (function, since) in
        [("ncclCommShrink", (2, 27)), ("ncclCommGrow", (2, 29)), ("ncclAllReduce", (2, 19))]
    {
        let version = (nccl.version().major, nccl.version().minor);
        assert_eq!(nccl.has(function), version >= since, "{function} in {}", nccl.version());
    }
    let id = nccl.unique_id();
    eprintln!("unique id: {id:?}");
    let id = id.unwrap_or(UniqueId::from_bytes([0; UniqueId::BYTES]));
    let outcome = Communicator::init(&nccl, 1, 0, &id, &Config::default());
    eprintln!("init: {outcome:?}");
    match outcome {
        Ok(comm) => comm.destroy().unwrap(),
        Err(Error::Nccl { code, .. }) => assert_ne!(code, Code(0)),
        Err(other) => panic!("{other}"),
    }
}
