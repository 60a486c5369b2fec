//! Python: pip's interpreter, and the pinned environments in which the peers run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::{cache, sh};

/// A Python 3 that has pip.
pub(crate) fn interpreter() -> Result<PathBuf> {
    for name in ["python3", "python"] {
        let pip = Command::new(name).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
        if pip.is_ok_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).contains("(python 3")) {
            return Ok(name.into());
        }
    }
    bail!(
        "python3 with pip was not found, and it is what fetches libtorch: install it (Debian and Ubuntu: \
         apt-get install python3-pip python3-venv), or set LIBTORCH to a libtorch of your own"
    )
}

/// PyTorch as the peer of training, collectives and checkpoints. Its wheel does not load without the CUDA libraries
/// (about 3 GB of download), and pins them itself.
pub(crate) const TORCH: Environment = Environment {
    name: "peers-torch-2.11.0",
    bytes: 9_000_000_000,
    imports: "torch, safetensors",
    beside: None,
    requirements: &[
        "torch==2.11.0",
        "filelock==3.20.0",
        "fsspec==2025.10.0",
        "jinja2==3.1.6",
        "markupsafe==3.0.3",
        "mpmath==1.3.0",
        "networkx==3.4.2",
        "numpy==2.2.6",
        "safetensors==0.7.0",
        "sympy==1.14.0",
        "typing-extensions==4.15.0",
    ],
};

/// Optuna as the peer of the samplers. Its Gaussian processes want PyTorch, and find that of [`TORCH`].
pub(crate) const OPTUNA: Environment = Environment {
    name: "peers-optuna-5.0.0",
    bytes: 600_000_000,
    imports: "optuna, cmaes, scipy, torch",
    beside: Some(&TORCH),
    requirements: &[
        "optuna==5.0.0",
        "alembic==1.20.1",
        "cmaes==0.13.1",
        "colorlog==6.12.0",
        "mako==1.4.3",
        "markupsafe==3.0.4",
        "numpy==2.4.6",
        "packaging==26.3",
        "pyyaml==6.0.3",
        "scipy==1.17.1",
        "sqlalchemy==2.1.9",
        "tqdm==4.70.1",
        "typing-extensions==4.16.0",
    ],
};

/// Ray Train and Ray Tune as the peers of the trainer and the tuner.
pub(crate) const RAY: Environment = Environment {
    name: "peers-ray-2.60.0",
    bytes: 1_500_000_000,
    imports: "ray.train, ray.tune",
    beside: None,
    requirements: &[
        "ray[train,tune]==2.60.0",
        "annotated-types==0.8.0",
        "attrs==26.1.0",
        "certifi==2026.10.18",
        "charset-normalizer==3.5.2",
        "click==8.5.1",
        "filelock==4.2.11",
        "fsspec==2026.9.0",
        "idna==3.20",
        "jsonschema==4.26.0",
        "jsonschema-specifications==2025.9.1",
        "msgpack==1.2.4",
        "numpy==2.4.6",
        "packaging==26.3",
        "pandas==3.1.1",
        "protobuf==7.36.2",
        "pyarrow==26.0.1",
        "pydantic==2.14.3",
        "pydantic_core==2.50.4",
        "python-dateutil==4.0.0",
        "pyyaml==6.0.3",
        "referencing==0.37.0",
        "requests==2.34.2",
        "rpds-py==2026.9.1",
        "tensorboardx==2.6.5",
        "typing-inspection==0.4.5",
        "typing_extensions==4.16.0",
        "tzdata==2026.6",
        "urllib3==2.8.0",
    ],
};

/// A Ray cluster that is submitted to: with its dashboard, and so its Jobs API, and nothing of its libraries.
pub(crate) const RAY_CLUSTER: Environment = Environment {
    name: "ray-2.60.0",
    bytes: 500_000_000,
    imports: "ray, aiohttp",
    beside: None,
    requirements: &[
        "ray[default]==2.60.0",
        "aiohappyeyeballs==2.7.1",
        "aiohttp==3.14.5",
        "aiohttp-cors==0.8.1",
        "aiosignal==1.4.0",
        "annotated-types==0.8.0",
        "attrs==26.1.0",
        "certifi==2026.10.18",
        "cffi==2.1.1",
        "charset-normalizer==3.5.2",
        "click==8.5.1",
        "colorful==0.5.8",
        "cryptography==50.0.2",
        "distlib==0.4.4",
        "filelock==4.2.11",
        "frozenlist==1.8.0",
        "google-api-core==2.44.0",
        "google-auth==2.62.2",
        "googleapis-common-protos==1.76.0",
        "grpcio==1.85.1",
        "idna==3.20",
        "jsonschema==4.26.0",
        "jsonschema-specifications==2025.9.1",
        "msgpack==1.2.4",
        "multidict==7.2.1",
        "opencensus==0.11.4",
        "opencensus-context==0.1.3",
        "opentelemetry-api==1.45.2",
        "opentelemetry-exporter-prometheus==0.66b2",
        "opentelemetry-proto==1.45.2",
        "opentelemetry-sdk==1.45.2",
        "opentelemetry-semantic-conventions==0.66b2",
        "packaging==26.3",
        "platformdirs==4.14.7",
        "prometheus_client==0.26.0",
        "propcache==0.5.4",
        "proto-plus==1.29.0",
        "protobuf==7.36.2",
        "py-spy==0.4.3",
        "pyasn1==0.6.5",
        "pyasn1_modules==0.4.2",
        "pycparser==3.12",
        "pydantic==2.14.3",
        "pydantic_core==2.50.4",
        "python-discovery==1.9.5",
        "pyyaml==6.0.3",
        "referencing==0.37.0",
        "requests==2.34.2",
        "rpds-py==2026.9.1",
        "six==1.17.0",
        "smart_open==9.0.2",
        "typing-inspection==0.4.5",
        "typing_extensions==4.16.0",
        "urllib3==2.8.0",
        "virtualenv==21.15.8",
        "wrapt==2.5.2",
        "yarl==1.25.1",
    ],
};

/// A pinned virtual environment in the cache.
pub(crate) struct Environment {
    name: &'static str,
    bytes: u64,
    /// What must import for it to count as made.
    imports: &'static str,
    /// Another whose packages it sees after its own.
    beside: Option<&'static Environment>,
    requirements: &'static [&'static str],
}

impl Environment {
    /// The environment's Python, installed on first use; `REGATTA_PYTHON` names another in its place.
    pub(crate) fn python(&self) -> Result<PathBuf> {
        if let Some(own) = std::env::var_os("REGATTA_PYTHON") {
            return Ok(own.into());
        }
        let bin = |dir: &Path| dir.join("bin/python");
        let done = |dir: &Path| match dir.join("complete").exists() && bin(dir).exists() {
            true => Ok(()),
            false => bail!("{} is not complete", dir.display()),
        };
        let dir = cache::install(self.name, self.bytes, done, |dir| {
            eprintln!("making the peers' Python environment {} (once)", self.name);
            let quiet = || Stdio::from(std::io::stderr());
            sh(Command::new(interpreter()?).args(["-m", "venv"]).arg(dir).stdout(quiet()))?;
            let mut pip = Command::new(bin(dir));
            pip.args(["-m", "pip", "install", "--only-binary=:all:", "--no-cache-dir"]).env("TMPDIR", dir);
            pip.arg("--disable-pip-version-check");
            sh(pip.args(self.requirements).stdout(quiet()))?;
            if let Some(other) = self.beside {
                let site = "import sysconfig; print(sysconfig.get_path('purelib'))";
                let found = Command::new(other.python()?).args(["-c", site]).output()?;
                let path = "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/beside.pth', 'w').write(sys.argv[1])";
                let found = String::from_utf8_lossy(&found.stdout);
                sh(Command::new(bin(dir)).args(["-c", path, found.trim()]))?;
            }
            sh(Command::new(bin(dir)).args(["-c", &format!("import {}", self.imports)]))?;
            std::fs::write(dir.join("complete"), "")?;
            Ok(())
        })?;
        Ok(bin(&dir))
    }
}
