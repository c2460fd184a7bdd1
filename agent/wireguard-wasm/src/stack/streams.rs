//! What the two directions of a flow hold: reading, writing and their ends.

use super::flow::Flow;
use super::{FlowId, Stack};

impl Stack {
    /// See `Flow::read`.
    pub fn read(&mut self, id: FlowId, target: &mut [u8]) -> usize {
        let Some(flow) = self.flow_mut(id) else { return 0 };
        let taken = flow.read(target);
        // The window may be worth telling, and the end may have been what was left.
        self.touch(id);
        self.settle(id);
        taken
    }

    /// See `Flow::peek`; the address holds until the next call about this flow, or `receive`.
    pub fn peek(&mut self, id: FlowId) -> &[u8] {
        self.flow_mut(id).map_or(&[], Flow::peek)
    }

    /// Takes `bytes` of what `peek` showed.
    pub fn consume(&mut self, id: FlowId, bytes: usize) {
        if let Some(flow) = self.flow_mut(id) {
            flow.consume(bytes);
            self.touch(id);
            self.settle(id);
        }
    }

    /// See `Flow::room`; the address holds as that of `peek`.
    pub fn room(&mut self, id: FlowId) -> &mut [u8] {
        let may_grow = self.may_grow();
        let Some(flow) = self.flow_mut(id) else { return &mut [] };
        flow.allow_growth(may_grow);
        flow.reserve();
        self.account(id);
        self.flow_mut(id).map_or(&mut [], Flow::room)
    }

    /// Sends `bytes` that were put where `room` is; returns those that are taken.
    pub fn commit(&mut self, id: FlowId, bytes: usize) -> usize {
        let taken = self.flow_mut(id).map_or(0, |flow| flow.commit(bytes));
        if taken > 0 {
            self.touch(id);
        }
        taken
    }

    pub fn readable(&self, id: FlowId) -> usize {
        self.flow(id).map_or(0, Flow::readable)
    }

    /// See `Flow::write`.
    pub fn write(&mut self, id: FlowId, bytes: &[u8]) -> usize {
        let may_grow = self.may_grow();
        let Some(flow) = self.flow_mut(id) else { return 0 };
        flow.allow_growth(may_grow);
        let taken = flow.write(bytes);
        self.account(id);
        if taken > 0 {
            self.touch(id);
        }
        taken
    }

    pub fn unacknowledged(&self, id: FlowId) -> usize {
        self.flow(id).map_or(0, Flow::unacknowledged)
    }

    pub fn finish(&mut self, id: FlowId) {
        if let Some(flow) = self.flow_mut(id) {
            flow.finish();
            self.touch(id);
        }
    }

    pub fn abort(&mut self, id: FlowId) {
        let Some(flow) = self.flow_mut(id) else { return };
        if flow.is_incoming() {
            let local = flow.local;
            flow.drop_silently();
            self.no_longer_incoming(local);
            self.settle(id);
        } else {
            flow.abort();
            self.touch(id);
        }
    }

    pub fn set_nodelay(&mut self, id: FlowId, on: bool) {
        if let Some(flow) = self.flow_mut(id) {
            flow.set_nodelay(on);
        }
    }
}
