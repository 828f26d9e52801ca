//! Work spread over a private thread pool.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    thread,
};

use rayon::{
    ThreadPool, ThreadPoolBuilder,
    iter::{IntoParallelIterator, ParallelIterator},
};

/// Calls `f` once for each item, on `threads` threads (0: all cores), and returns when all calls have.
///
/// One thread, or one item, is the caller's own thread. Calls run in any order.
pub fn for_each<T: Send>(threads: usize, items: Vec<T>, f: impl Fn(T) + Send + Sync) {
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
        n => n,
    };
    // One pool for each number that callers ask for, whatever the number of items.
    match pool(if items.len() > 1 { threads } else { 1 }) {
        Some(pool) => pool.install(|| items.into_par_iter().for_each(f)),
        None => items.into_iter().for_each(f),
    }
}

/// A pool of that many threads; none for one thread, and where the system refuses to start threads.
///
/// Only the forking thread survives a fork, so a pool belongs to the process that built it: the child finds none under
/// its own id and builds another. Pools are never dropped, as a child could not join threads that it does not have.
fn pool(threads: usize) -> Option<&'static ThreadPool> {
    static POOLS: Mutex<Vec<(u32, usize, &'static ThreadPool)>> = Mutex::new(Vec::new());
    if threads <= 1 {
        return None;
    }
    let process = std::process::id();
    let find = || {
        let pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .iter()
            .find(|(p, t, _)| (*p, *t) == (process, threads))
            .map(|(.., pool)| *pool)
    };
    find().or_else(|| {
        // Built outside the lock, so that a fork at this moment does not leave the child a locked lock.
        let built = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("requant-{i}"))
            .build()
            .ok()?;
        let pool: &'static ThreadPool = Box::leak(Box::new(built));
        POOLS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((process, threads, pool));
        Some(pool)
    })
}
