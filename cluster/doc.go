// Package cluster lets several nodes be one, over NATS: a server of it that runs
// in this process, or a cluster outside.
//
// A Link is the connection, and the embedded server where there is one. The
// Broker on it implements topic.Broker: publications without a history go over
// plain subjects, those with one into a JetStream stream for each namespace.
//
// Nodes know the other nodes that are alive, ask them what concerns all (control,
// presence, info) and answer them, over plain subjects.
//
// A node whose embedded server is the leaf of a hub is a site of its own: what its
// streams get from its clients goes up to the hub (uplink), what the hub's have
// comes down into them (downlink).
//
// Nothing here runs on an event loop. What a loop calls (Broker.Publish,
// Broker.History) puts work into bounded queues and returns; answers come on
// goroutines of the Link.
package cluster
