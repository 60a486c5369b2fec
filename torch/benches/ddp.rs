//! Our side of the data-parallel cases of `cargo xtask bench train`: reads a case's name from stdin, measures one round of it
//! with one worker or two, and prints the figure (samples or steps a second, of all workers together) as one line.
//!
//! It is its own workers: for each world it is executed again, once a rank, and these wait in a read between the cases.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::time::Instant;

use crew::{Crew, RANK};
use regatta_comm::ProcessGroup;
use regatta_torch::ddp::{DataParallel, DataParallelConfig};
use regatta_torch::optim::{Adam, Optimizer};
use tch::nn::{self, ModuleT, VarStore};
use tch::{Device, Kind, Tensor};

#[path = "../../comm/benches/allreduce/crew.rs"]
mod crew;

/// The example's model; the example itself stands above this crate.
#[allow(unreachable_pub)] // a library there
#[path = "../../examples/mnist_resnet/src/resnet.rs"]
mod resnet;

use resnet::resnet18;

const SAMPLES: i64 = 10_000;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    match std::env::var(RANK) {
        Ok(who) => be_rank(&who),
        Err(_) => be_contestant(),
    }
}

fn be_contestant() -> Result<()> {
    let mut crews: BTreeMap<usize, Crew> = BTreeMap::new();
    for case in std::io::stdin().lines() {
        let case = case?;
        let (what, world) = case.trim().split_once('_').ok_or("a case is like mlp_2workers")?;
        let world: usize = world.trim_end_matches("workers").parse()?;
        let crew = match crews.entry(world) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(Crew::start(world, "")?),
        };
        let answer = crew.ask(what)?;
        print!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn be_rank(who: &str) -> Result<()> {
    let (place, _) = crew::place(who)?;
    let (rank, world) = (place.rank, place.world_size);
    regatta_torch::threads::set(1)?;
    // As the example does; PyTorch can too, but does not unless told.
    regatta_torch::threads::flush_denormals(true)?;
    let group = place.join()?;
    // Noise of the shape of MNIST: what it is does not change how long a step takes.
    let images = Tensor::rand([SAMPLES, 1, 28, 28], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    let labels = Tensor::randint(10, [SAMPLES], (Kind::Int64, Device::Cpu));
    let mut trainees: BTreeMap<String, Trainee> = BTreeMap::new();
    for line in std::io::stdin().lines() {
        let line = line?;
        let (steps, unit) = if line.starts_with("mlp") { (1000, 1.0) } else { (5, 128.0 * world as f64) };
        // All ranks are asked the same, so they make their models together.
        let trainee = match trainees.entry(line) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => {
                let made = trainee(free.key(), &group, &images, &labels)?;
                free.insert(made)
            }
        };
        trainee.step()?;
        group.barrier()?;
        let began = Instant::now();
        for _ in 0..steps {
            trainee.step()?;
        }
        group.barrier()?;
        if rank == 0 {
            println!("{}", f64::from(steps) * unit / began.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// What a case trains.
fn trainee(case: &str, group: &ProcessGroup, images: &Tensor, labels: &Tensor) -> Result<Trainee> {
    let (images, labels) = (images.shallow_clone(), labels.shallow_clone());
    match case {
        "resnet18" | "resnet18unchecked" => {
            let config = DataParallelConfig { check_finite: case == "resnet18", ..Default::default() };
            Trainee::new(group, config, (images, labels, 128), |vs| Box::new(resnet18(&vs.root(), 10)))
        }
        "mlp" => {
            let images = images.flatten(1, -1).contiguous();
            Trainee::new(group, DataParallelConfig::default(), (images, labels, 64), |vs| {
                let root = vs.root();
                let net = nn::seq()
                    .add(nn::linear(&root / "hidden", 784, 128, Default::default()))
                    .add_fn(|x| x.relu())
                    .add(nn::linear(&root / "head", 128, 10, Default::default()));
                Box::new(net)
            })
        }
        other => Err(format!("no case {other:?}").into()),
    }
}

/// A model in training, with batches in the order of the data, from the start again at the end.
struct Trainee {
    net: Box<dyn ModuleT>,
    model: DataParallel,
    optimizer: Adam,
    images: Tensor,
    labels: Tensor,
    batch: i64,
    cursor: i64,
}

impl Trainee {
    fn new(
        group: &ProcessGroup,
        config: DataParallelConfig,
        (images, labels, batch): (Tensor, Tensor, i64),
        build: impl FnOnce(&VarStore) -> Box<dyn ModuleT>,
    ) -> Result<Trainee> {
        let vs = VarStore::new(Device::Cpu);
        let net = build(&vs);
        let optimizer = Adam::new(&vs, 1e-3);
        let model = DataParallel::new(&vs, group.clone(), config)?;
        Ok(Trainee { net, model, optimizer, images, labels, batch, cursor: group.rank() as i64 * batch })
    }

    fn step(&mut self) -> Result<()> {
        if self.cursor + self.batch > self.labels.size()[0] {
            self.cursor = 0;
        }
        let (x, y) =
            (self.images.narrow(0, self.cursor, self.batch), self.labels.narrow(0, self.cursor, self.batch));
        self.cursor += self.batch * self.model.group().world_size() as i64;
        let loss = self.net.forward_t(&x, true).cross_entropy_for_logits(&y);
        self.model.backward(&loss)?;
        Ok(self.optimizer.step()?)
    }
}
