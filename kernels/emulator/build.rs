//! Names the library what the driver's loader asks for: glibc answers `dlopen("libcuda.so")` with a library of that
//! SONAME that is already loaded, so no file of that name has to lie where a real driver could be shadowed by it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    println!("cargo::rerun-if-changed=build.rs");
}
