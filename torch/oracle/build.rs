//! Compiles the oracle's C++ against the libtorch that `torch-sys` found.

use std::env;
use std::path::PathBuf;

fn main() {
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys publishes libtorch's folder"));
    let root = env::var("LIBTORCH_INCLUDE").map(PathBuf::from);
    let include =
        root.unwrap_or_else(|_| lib.parent().expect("the folder has a parent").to_owned()).join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"));
    build.define("USE_DISTRIBUTED", None).define("USE_C10D", None).opt_level(1).debug(false);
    build.file("shim/oracle.cpp").compile("regatta_torch_oracle");
    println!("cargo::rerun-if-changed=shim");
    println!("cargo::rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "torch", "c10"] {
        println!("cargo::rustc-link-lib={library}");
    }
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
