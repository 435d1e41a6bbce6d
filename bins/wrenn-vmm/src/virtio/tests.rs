//! The devices as a driver sees them: registers on the bus, rings in guest memory, interrupts on eventfds.

mod balloon;
mod block;
mod driver;
mod hostile;
mod machine;
mod net;
mod offload;
mod park;
mod ring;
mod rng;
mod transport;
mod wire;
