//! Lets the examples find libtorch without LD_LIBRARY_PATH.
fn main() {
    let lib = std::env::var("DEP_REGATTA_TORCH_LIBTORCH_LIB").expect("regatta-torch says where libtorch is");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
}
