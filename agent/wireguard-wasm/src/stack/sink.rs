//! Where packets go that the stack has made.

/// Takes packets one by one, such as slots in which they are sealed where they lie.
pub trait PacketSink {
    /// False: nothing more is made until the next poll.
    fn has_room(&self) -> bool;
    /// `fill` writes all of `length` bytes; called only while there is room.
    fn packet<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}
