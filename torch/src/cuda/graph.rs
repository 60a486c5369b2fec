//! A whole training step as one CUDA graph: the CPU launches it once instead of each kernel.

use std::time::Duration;

use tch::{Device, Tensor};

use super::stream::{Event, Stream};
use crate::error::{BoxError, Error, Result};
use crate::result::cuda::RawGraph;

/// Work that is still queued when a capture begins is waited for so long.
const QUIET: Duration = Duration::from_secs(60);

/// How a [`GraphedStep`] runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Eagerly for so many more calls, so that libtorch chooses its kernels and sizes its workspaces first.
    WarmingUp(u32),
    /// As a captured graph.
    Graph,
    /// Eagerly, for a reason.
    Eager(String),
}

/// A training step (forward, backward, optimiser) that is captured after some eager steps, and replayed from then on.
///
/// ```no_run
/// use regatta_torch::{backward, cuda::GraphedStep, optim::{AdamW, Optimizer}};
/// use tch::{Device, Tensor, nn, nn::Module};
/// # fn batches() -> Vec<(Tensor, Tensor)> { vec![] }
///
/// let vs = nn::VarStore::new(Device::Cuda(0));
/// let net = nn::linear(vs.root(), 784, 10, Default::default());
/// let opt = AdamW::new(&vs, 1e-3);
/// let mut captured = opt.share();
/// let mut step = GraphedStep::or_eager(Device::Cuda(0), move |inputs: &[Tensor]| {
///     captured.zero_grad()?;
///     let loss = net.forward(&inputs[0]).cross_entropy_for_logits(&inputs[1]);
///     backward(&loss)?;
///     captured.step()?;
///     Ok::<_, regatta_torch::Error>(vec![loss.detach()])
/// });
/// for (x, y) in batches() {
///     let loss = &step.run(&[&x, &y])?[0];
/// }
/// # Ok::<(), regatta_torch::Error>(())
/// ```
///
/// Every call is one training step, in whatever mode, on the inputs given. What the closure does on the CPU happens only
/// while it warms up and captures: it must not read values from the device, choose by the data, or count steps. Learning
/// rates may change between calls; other settings are captured as they were. Inputs of other shapes than the captured
/// ones (a last, smaller batch) run eagerly. If the capture fails, the closure runs again, eagerly, and [`Mode::Eager`]
/// says why.
pub struct GraphedStep<F> {
    step: F,
    device: Device,
    mode: Mode,
    /// Where warming up and capturing happen: the default stream cannot be captured.
    side: Option<Stream>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Dropped after the tensors in its memory pool.
    graph: Option<RawGraph>,
}

impl<F> std::fmt::Debug for GraphedStep<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GraphedStep")
            .field("device", &self.device)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<F, E> GraphedStep<F>
where
    F: FnMut(&[Tensor]) -> Result<Vec<Tensor>, E>,
    E: Into<BoxError>,
{
    /// For a CUDA device; [`Error::NotAvailable`] elsewhere.
    pub fn new(device: Device, step: F) -> Result<Self> {
        let side = Self::side_stream(device)?;
        Ok(Self::with(device, step, Mode::WarmingUp(Self::WARMUP), Some(side)))
    }

    /// As [`GraphedStep::new`], but runs eagerly where graphs are not to be had.
    pub fn or_eager(device: Device, step: F) -> Self {
        match Self::side_stream(device) {
            Ok(side) => Self::with(device, step, Mode::WarmingUp(Self::WARMUP), Some(side)),
            Err(error) => Self::with(device, step, Mode::Eager(error.to_string()), None),
        }
    }

    fn side_stream(device: Device) -> Result<Stream> {
        let side = Stream::from_pool(device, false)?;
        // Finds out now whether this libtorch has what graphs need.
        RawGraph::new()?;
        Ok(side)
    }

    fn with(device: Device, step: F, mode: Mode, side: Option<Stream>) -> Self {
        GraphedStep { step, device, mode, side, inputs: Vec::new(), outputs: Vec::new(), graph: None }
    }

    const WARMUP: u32 = 3;

    /// How many calls run eagerly before the capture.
    pub fn warmup(mut self, calls: u32) -> Self {
        if let Mode::WarmingUp(left) = &mut self.mode {
            *left = calls;
        }
        self
    }

    /// How the next call will run.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// One training step. The outputs are the graph's own tensors: the next call overwrites them.
    pub fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        match self.mode {
            Mode::Eager(_) => self.eager(inputs),
            Mode::WarmingUp(0) => {
                if let Err(error) = self.capture(inputs) {
                    tracing::warn!(%error, "the training step cannot be captured; it runs eagerly");
                    (self.graph, self.inputs, self.outputs) = (None, Vec::new(), Vec::new());
                    self.mode = Mode::Eager(error.to_string());
                    return self.eager(inputs);
                }
                self.mode = Mode::Graph;
                self.replay(inputs)
            }
            Mode::WarmingUp(left) => {
                self.mode = Mode::WarmingUp(left - 1);
                self.aside(inputs, |step, _, inputs| step.eager(inputs))
            }
            Mode::Graph if self.fits(inputs) => self.replay(inputs),
            Mode::Graph => self.eager(inputs),
        }
    }

    fn eager(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let inputs: Vec<_> = inputs.iter().map(|input| input.shallow_clone()).collect();
        self.call(&inputs)
    }

    fn call(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        (self.step)(inputs).map_err(|error| match error.into().downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => Error::Step(error),
        })
    }

    /// Runs on the side stream, in order with the work before and after on the current one.
    fn aside<T>(
        &mut self,
        inputs: &[&Tensor],
        body: impl FnOnce(&mut Self, &Stream, &[&Tensor]) -> Result<T>,
    ) -> Result<T> {
        let side = match self.side {
            Some(side) => side,
            None => Stream::from_pool(self.device, false)?,
        };
        let current = Stream::current(self.device)?;
        let (mut before, mut after) = (Event::new(false)?, Event::new(false)?);
        before.record(&current)?;
        before.block(&side)?;
        let result = {
            let _side = side.enter()?;
            body(self, &side, inputs)
        };
        for input in inputs.iter().filter(|input| input.device().is_cuda()) {
            side.uses(input)?;
        }
        after.record(&side)?;
        after.block(&current)?;
        result
    }

    fn capture(&mut self, inputs: &[&Tensor]) -> Result<()> {
        let device = self.device;
        self.inputs = inputs.iter().map(|input| tch::no_grad(|| input.to_device(device).copy())).collect();
        self.aside(inputs, |step, side, _| {
            side.wait(QUIET)?;
            let mut capture = Capture::begin()?;
            let inputs: Vec<_> = step.inputs.iter().map(Tensor::shallow_clone).collect();
            let outputs = step.call(&inputs);
            let graph = capture.end();
            // A refused operation says more than the end of the capture it has spoilt.
            step.outputs = outputs?;
            step.graph = Some(graph?);
            Ok(())
        })
    }

    fn fits(&self, inputs: &[&Tensor]) -> bool {
        let alike =
            |(own, given): (&Tensor, &&Tensor)| own.size() == given.size() && own.kind() == given.kind();
        self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(alike)
    }

    fn replay(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        for (own, given) in self.inputs.iter_mut().zip(inputs) {
            tch::no_grad(|| own.f_copy_(given))?;
        }
        if let Some(graph) = &mut self.graph {
            graph.replay()?;
        }
        Ok(self.outputs.iter().map(Tensor::shallow_clone).collect())
    }
}

/// A capture under way; ends even if the closure panics, as an open capture would spoil the whole process.
struct Capture(Option<RawGraph>);

impl Capture {
    fn begin() -> Result<Self> {
        let mut graph = RawGraph::new()?;
        graph.begin()?;
        Ok(Capture(Some(graph)))
    }

    fn end(&mut self) -> Result<RawGraph> {
        let ended = Error::Argument { what: "Capture::end", why: "the capture has ended already".into() };
        let mut graph = self.0.take().ok_or(ended)?;
        graph.end()?;
        Ok(graph)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.0.is_some() {
            let _ = self.end();
        }
    }
}
