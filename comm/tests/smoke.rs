use regatta_comm::*;
#[test]
fn threads() {
    for world in 1..5 {
        thread::run(world, |g| {
            for n in [0usize, 1, 7, 1000, 5000, 70_000, 300_001] {
                let mut x = vec![g.rank() as f32 + 1.0; n];
                g.all_reduce(&mut x, ReduceOp::Sum).unwrap();
                let want = (world * (world + 1) / 2) as f32;
                assert!(x.iter().all(|v| *v == want), "{world} {n}");
                let mut b = g.alloc_bucket(n * 4).unwrap();
                b.as_mut_slice::<f32>().fill(g.rank() as f32 + 1.0);
                g.all_reduce_bucket::<f32>(&mut b, ReduceOp::Sum).unwrap();
                assert!(b.as_slice::<f32>().iter().all(|v| *v == want), "{world} {n}");
            }
            let r = g.all_reduce(&mut vec![0f32; 1 + g.rank()], ReduceOp::Sum);
            assert!(world == 1 || matches!(r, Err(Error::Mismatch { .. })), "{r:?}");
        });
    }
}
