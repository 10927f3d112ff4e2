package handler

import (
	"sync/atomic"

	"perch/protocol"
)

// kind is what a command asks for; it is an index of the counters.
type kind uint8

const (
	kindNone kind = iota
	kindConnect
	kindSubscribe
	kindUnsubscribe
	kindPublish
	kindPresence
	kindPresenceStats
	kindHistory
	kindPing
	kindSend
	kindRPC
	kindRefresh
	kindSubRefresh
	kindCount
)

// kindNames are values of the metric label "command".
var kindNames = [kindCount]string{
	"none", "connect", "subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history", "ping",
	"send", "rpc", "refresh", "sub_refresh",
}

func kindOf(c *protocol.Command) kind {
	switch {
	case c.Connect != nil:
		return kindConnect
	case c.Subscribe != nil:
		return kindSubscribe
	case c.Unsubscribe != nil:
		return kindUnsubscribe
	case c.Publish != nil:
		return kindPublish
	case c.Presence != nil:
		return kindPresence
	case c.PresenceStats != nil:
		return kindPresenceStats
	case c.History != nil:
		return kindHistory
	case c.Rpc != nil:
		return kindRPC
	case c.Send != nil:
		return kindSend
	case c.Refresh != nil:
		return kindRefresh
	case c.SubRefresh != nil:
		return kindSubRefresh
	case c.Ping != nil:
		return kindPing
	}
	return kindNone
}

const errorCodes = protocol.LastErrorCode - protocol.FirstErrorCode + 1

// Counters count what Commands does. Safe from any goroutine.
type Counters struct {
	commands [kindCount]atomic.Uint64
	// errors are by code; the last is of an application's own codes.
	errors [errorCodes + 1]atomic.Uint64

	Malformed       atomic.Uint64 // messages that broke the protocol's form or order
	BacklogOverflow atomic.Uint64 // commands refused as their session's backlog was full
	RateLimited     atomic.Uint64 // commands over their session's rate
	UserLimited     atomic.Uint64 // sessions over their user's number
	PoolFull        atomic.Uint64 // commands refused as the pool or the inbox was full
	EventIDs        atomic.Uint64 // ids of event streams that could not be read
	NotEncoded      atomic.Uint64 // replies and pushes that their client's format can't carry
	RPCTimeouts     atomic.Uint64
	RPCPanics       atomic.Uint64
}

func (c *Counters) failed(code uint32) {
	i := code - protocol.FirstErrorCode
	if i >= errorCodes {
		i = errorCodes
	}
	c.errors[i].Add(1)
}

// CountersSnapshot is Counters at one moment.
type CountersSnapshot struct {
	Commands map[string]uint64 // by kind
	Errors   map[uint32]uint64 // replies by code; 0 stands for an application's own codes

	Malformed       uint64
	BacklogOverflow uint64
	RateLimited     uint64
	UserLimited     uint64
	PoolFull        uint64
	EventIDs        uint64
	NotEncoded      uint64
	RPCTimeouts     uint64
	RPCPanics       uint64
}

// Snapshot reads the counters.
func (c *Counters) Snapshot() CountersSnapshot {
	out := CountersSnapshot{
		Commands: make(map[string]uint64, kindCount), Errors: make(map[uint32]uint64, errorCodes+1),
		Malformed: c.Malformed.Load(), BacklogOverflow: c.BacklogOverflow.Load(), RateLimited: c.RateLimited.Load(), UserLimited: c.UserLimited.Load(), PoolFull: c.PoolFull.Load(), EventIDs: c.EventIDs.Load(), NotEncoded: c.NotEncoded.Load(),
		RPCTimeouts: c.RPCTimeouts.Load(), RPCPanics: c.RPCPanics.Load(),
	}
	for k := kindConnect; k < kindCount; k++ {
		out.Commands[kindNames[k]] = c.commands[k].Load()
	}
	for i := range errorCodes {
		out.Errors[protocol.FirstErrorCode+uint32(i)] = c.errors[i].Load()
	}
	out.Errors[0] = c.errors[errorCodes].Load()
	return out
}
