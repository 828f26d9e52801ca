//! Prints the GOPS of the register-only loop, for benches in other languages to put beside their own.
#![allow(clippy::print_stdout, reason = "its purpose")]

mod peak {
    include!("mod.rs");
}
