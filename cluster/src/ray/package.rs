//! What travels to the cluster: the program and its files in one package, the driver's variables in another.
//!
//! A package is named by what is in it, so that the same program is uploaded once however often it is submitted. Ray unpacks
//! it on every node that needs it; permissions survive.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::RayConfig;
use crate::engine::{JobSpec, shell};
use crate::error::{Error, Result};

/// The most that Ray takes: it says so only after the upload.
const LIMIT: u64 = 512 << 20;

/// Where the program lies in the package.
const PROGRAMS: &str = "bin";

/// Files of this machine and their places in the package.
#[derive(Debug)]
pub(super) struct Package {
    files: BTreeMap<String, PathBuf>,
    /// The program's place, where it goes along.
    pub(super) program: Option<String>,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

impl Package {
    /// What the configuration and the job say, without looking into files.
    pub(super) fn of(config: &RayConfig, spec: &JobSpec) -> Result<Self> {
        let mut package = Self { files: BTreeMap::new(), program: None };
        let program = Path::new(&spec.command.program);
        if config.ship_program && program.components().count() > 1 {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            let place = format!("{PROGRAMS}/{name}");
            package.files.insert(place.clone(), program.to_owned());
            package.program = Some(place);
        }
        for path in &config.files {
            package.add(path, &place(path))?;
        }
        Ok(package)
    }

    fn add(&mut self, path: &Path, place: &str) -> Result<()> {
        let kind = fs::metadata(path).map_err(failed("read for the job's package", path))?;
        if !kind.is_dir() {
            self.files.insert(place.to_owned(), path.to_owned());
            return Ok(());
        }
        let entries = fs::read_dir(path).map_err(failed("list for the job's package", path))?;
        for entry in entries {
            let entry = entry.map_err(failed("list for the job's package", path))?;
            let name = entry.file_name();
            let inside = match place {
                "" => name.to_string_lossy().into_owned(),
                _ => format!("{place}/{}", name.to_string_lossy()),
            };
            self.add(&entry.path(), &inside)?;
        }
        Ok(())
    }

    /// The places in the package, in order.
    pub(super) fn places(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Its name, which is all of it in short: places, permissions, contents.
    pub(super) fn name(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        for (place, path) in &self.files {
            let reading = failed("read for the job's package", path);
            let hashed = File::open(path).and_then(|mut file| {
                let about = file.metadata()?;
                hash.update(place.as_bytes()).update(&[0]);
                hash.update(&[u8::from(runs(&about))]).update(&about.len().to_le_bytes());
                let mut of_file = blake3::Hasher::new();
                io::copy(&mut file, &mut of_file)?;
                hash.update(of_file.finalize().as_bytes());
                Ok(())
            });
            hashed.map_err(reading)?;
        }
        Ok(name(&hash))
    }

    /// Packs it.
    pub(super) fn pack(&self) -> Result<Vec<u8>> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (place, path) in &self.files {
            let packed = File::open(path).and_then(|mut file| {
                let about = file.metadata()?;
                let mode = if runs(&about) { 0o755 } else { 0o644 };
                write(&mut zip, place, mode, &mut file)
            });
            packed.map_err(failed("read for the job's package", path))?;
        }
        let packed =
            zip.finish().map_err(io::Error::other).map_err(failed("pack", Path::new("the job's package")))?;
        let packed = packed.into_inner();
        if packed.len() as u64 > LIMIT {
            let problem = format!(
                "it is {} MiB, and Ray takes {} MiB: leave out files that the nodes reach otherwise, on shared storage or in \
                 their image, and strip the program",
                packed.len() >> 20,
                LIMIT >> 20
            );
            return Err(Error::BadRequest { what: "the job's package".into(), problem });
        }
        Ok(packed)
    }
}

fn runs(about: &fs::Metadata) -> bool {
    about.permissions().mode() & 0o111 != 0
}

fn name(hash: &blake3::Hasher) -> String {
    format!("_ray_pkg_{}.zip", &hash.finalize().to_hex()[..32])
}

/// Under this folder a file keeps its place; one from elsewhere goes to the top.
fn place(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let inside = path.strip_prefix(&here).unwrap_or(path);
    let plain = inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    let parts = inside.components().filter(|part| matches!(part, Component::Normal(_)));
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn write(
    zip: &mut ZipWriter<Cursor<Vec<u8>>>,
    place: &str,
    mode: u32,
    from: &mut impl Read,
) -> io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(1))
        .large_file(true)
        .unix_permissions(mode);
    zip.start_file(place, options).map_err(io::Error::other)?;
    io::copy(from, zip).map(drop)
}

/// The driver's variables as a package of its own, and its name, which says nothing about them.
pub(super) fn variables(config: &RayConfig, spec: &JobSpec) -> Result<(String, Vec<u8>)> {
    let taken =
        config.variables.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    let mut variables: BTreeMap<OsString, OsString> = taken.collect();
    variables.extend(spec.command.env.iter().map(|(name, value)| (name.into(), value.clone())));
    let lines = shell::exports(variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())));
    let mut hash = blake3::Hasher::new();
    hash.update(&rand::random::<[u8; 16]>()).update(lines.as_encoded_bytes());
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut text = lines.as_encoded_bytes();
    let packed = write(&mut zip, &variables_file(spec), 0o600, &mut text)
        .and_then(|()| zip.finish().map_err(io::Error::other));
    let packed = packed.map_err(failed("pack", Path::new("the driver's variables")))?;
    Ok((name(&hash), packed.into_inner()))
}

fn variables_file(spec: &JobSpec) -> String {
    format!("regatta/{}.env", spec.id)
}

/// The job's entrypoint, for the shell that Ray starts it with: it says that it begins, reads the variables, and becomes the
/// driver. Ray writes a line of its own into the log, but only after it has started the shell, which therefore waits for it:
/// what follows then is the driver's alone.
pub(super) fn entrypoint(spec: &JobSpec, program: Option<&str>) -> OsString {
    let mut script = OsString::from(format!(
        "n=0; while [ -f /proc/$$/fd/1 ] && [ $n -lt 100 ] && ! grep -q '^Running entrypoint' /proc/$$/fd/1; do \
         n=$((n+1)); sleep 0.02; done; printf '\\036{MARK} %s\\n' $$; IFS=:; for d in $PYTHONPATH; do e=$d/{}; \
         if [ -f \"$e\" ]; then . \"$e\"; rm -f \"$e\"; fi; done; unset IFS d e n; \
         export {HOME}=\"$(pwd -P)\"; ",
        variables_file(spec)
    ));
    if let Some(cwd) = &spec.command.cwd {
        script.push("cd ");
        script.push(shell::quote(cwd.as_os_str()));
        script.push(" || exit 72; ");
    }
    script.push("exec ");
    match program {
        Some(place) => {
            script.push(format!("\"${HOME}\"/"));
            script.push(shell::quote(place.as_ref()));
        }
        None => script.push(shell::quote(&spec.command.program)),
    }
    for arg in &spec.command.args {
        script.push(" ");
        script.push(shell::quote(arg));
    }
    script
}

/// What the entrypoint's first word is, after which the driver's own output begins, and its process group follows.
pub(super) const MARK: &str = "regatta-driver";
/// The folder of the unpacked package, in the driver's environment.
pub(super) const HOME: &str = "REGATTA_RAY_HOME";

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::engine::JobId;
    use crate::request::GangRequest;
    use crate::resource::Resources;
    use crate::spawner::WorkerCommand;

    fn spec(program: &Path) -> JobSpec {
        let room = GangRequest::new("g", 1, Resources::cpus(1));
        JobSpec::new(JobId::new("mnist-1").unwrap(), WorkerCommand::new(program), room)
    }

    fn folder_with_files() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("data/deep")).unwrap();
        fs::write(folder.path().join("data/deep/a"), "a").unwrap();
        fs::write(folder.path().join("train"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.path().join("train"), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn a_package_is_named_by_its_content_and_holds_all_of_it() {
        let folder = folder_with_files();
        let config = RayConfig { files: vec![folder.path().join("data")], ..RayConfig::default() };
        let spec = spec(&folder.path().join("train"));
        let package = Package::of(&config, &spec).unwrap();
        assert_eq!(package.places().collect::<Vec<_>>(), ["bin/train", "data/deep/a"]);
        let name = package.name().unwrap();
        assert!(name.starts_with("_ray_pkg_") && name.ends_with(".zip"), "{name}");
        assert_eq!(Package::of(&config, &spec).unwrap().name().unwrap(), name, "the same content");

        let mut zip = zip::ZipArchive::new(Cursor::new(package.pack().unwrap())).unwrap();
        assert_eq!(zip.by_name("bin/train").unwrap().unix_mode().unwrap() & 0o777, 0o755);
        let mut text = String::new();
        zip.by_name("data/deep/a").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a");

        fs::write(folder.path().join("data/deep/a"), "b").unwrap();
        let changed = package.name().unwrap();
        assert_ne!(changed, name, "a file changed");
        fs::set_permissions(folder.path().join("train"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(package.name().unwrap(), changed, "it may not be run any more");
    }

    #[test]
    fn what_is_not_there_is_named_and_what_is_there_already_stays_there() {
        let config = RayConfig { files: vec!["/nowhere/data".into()], ..RayConfig::default() };
        let error = Package::of(&config, &spec(Path::new("/bin/sh"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/data"), "{error}");
        let there = RayConfig { ship_program: false, ..RayConfig::default() };
        let package = Package::of(&there, &spec(Path::new("/opt/train"))).unwrap();
        assert!(package.places().next().is_none() && package.program.is_none());
        assert!(Package::of(&RayConfig::default(), &spec(Path::new("python"))).unwrap().program.is_none());
        let missing = Package::of(&RayConfig::default(), &spec(Path::new("/nowhere/train"))).unwrap();
        assert!(missing.name().unwrap_err().to_string().contains("/nowhere/train"));
    }

    #[test]
    fn an_entrypoint_becomes_the_driver_with_its_variables_and_shows_none_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec(Path::new("/bin/echo"));
        spec.command = spec.command.env("SECRET", "it's a secret").arg("$SECRET").arg("a 'b'");
        let script = entrypoint(&spec, None);
        assert!(!script.to_string_lossy().contains("it's a secret"));
        let (_, packed) = variables(&RayConfig::default(), &spec).unwrap();
        let mut zip = zip::ZipArchive::new(Cursor::new(packed)).unwrap();
        zip.extract(folder.path()).unwrap();
        let file = folder.path().join(variables_file(&spec));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        let paths = format!("/somewhere else:{}", folder.path().display());
        let run = |script: &OsString| {
            let said =
                Command::new("/bin/sh").arg("-c").arg(script).env("PYTHONPATH", &paths).output().unwrap();
            String::from_utf8(said.stdout).unwrap()
        };
        let said = run(&script);
        assert!(said.starts_with(&format!("\u{1e}{MARK} ")) && said.ends_with("\n$SECRET a 'b'\n"), "{said}");
        assert!(!file.exists(), "it is gone once it was read");

        // Into a file, as Ray has it: its own line comes a moment after the start, and before all that is the driver's.
        zip.extract(folder.path()).unwrap();
        let path = folder.path().join("log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(&script).env("PYTHONPATH", &paths).stdout(log.try_clone().unwrap());
        let mut shell = shell.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        io::Write::write_all(&mut log, b"Running entrypoint for job mnist-1: n=0\n").unwrap();
        assert!(shell.wait().unwrap().success());
        let log = fs::read_to_string(&path).unwrap();
        assert!(log.starts_with(&format!("Running entrypoint for job mnist-1: n=0\n\u{1e}{MARK} ")), "{log}");

        spec.command = WorkerCommand::new("/bin/sh").arg("-c").arg("echo \"$SECRET in $REGATTA_RAY_HOME\"");
        zip.extract(folder.path()).unwrap();
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert!(run(&entrypoint(&spec, None)).ends_with(&format!("it's a secret in {}\n", here.display())));
    }
}
