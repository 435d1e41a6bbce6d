//! virtio devices behind the MMIO transport.
