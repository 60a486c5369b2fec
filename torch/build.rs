//! Compiles the C++ shim against the libtorch that `torch-sys` found, and tells dependants where that lies.

use std::env;
use std::path::PathBuf;

const SOURCES: [&str; 5] = ["autograd", "context", "cuda", "ddp", "optim"];

fn main() {
    // torch-sys (links = "tch") publishes the folder of the libraries; the headers lie beside it.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys publishes libtorch's folder"));
    // Unless the user keeps headers elsewhere, which torch-sys knows by the same variable.
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let root = env::var("LIBTORCH_INCLUDE").map(PathBuf::from);
    let root = root.unwrap_or_else(|_| lib.parent().expect("the library folder has a parent").to_owned());
    let include = root.join("include");

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(true).flag("-isystem").flag(&include);
    build.flag("-isystem").flag(include.join("torch/csrc/api/include")).opt_level(2).debug(false);
    for source in SOURCES {
        build.file(format!("shim/{source}.cpp"));
    }
    build.compile("regatta_torch_shim");

    println!("cargo::rerun-if-changed=shim");
    println!("cargo::rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "torch", "c10"] {
        println!("cargo::rustc-link-lib={library}");
    }
    // Our own tests and examples find libtorch by rpath; dependants do the same from DEP_REGATTA_TORCH_LIBTORCH_LIB.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo::metadata=libtorch_lib={}", lib.display());
}
