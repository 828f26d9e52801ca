//! Prints the GOPS of the register-only loop, for benches in other languages to put beside their own.
#![allow(clippy::print_stdout, reason = "its purpose")]

#[path = "mod.rs"]
mod peak;

use std::time::Instant;

fn main() {
    let start = Instant::now();
    let operations = peak::run();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:.1}",
        if operations > 0 {
            operations as f64 / seconds / 1e9
        } else {
            f64::NAN
        }
    );
}
