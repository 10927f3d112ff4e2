package cluster

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

const (
	// answerWorkers bounds the questions of others that are at work here, and
	// answerQueue and answerQueueBytes those that wait for it.
	answerWorkers    = 16
	answerQueue      = 4096
	answerQueueBytes = 16 << 20
	// maxAnswer bounds an answer, which goes in parts of answerPart or of what the
	// servers take.
	maxAnswer  = 16 << 20
	answerPart = 256 << 10
	// envelopeRoom is what an envelope needs beside what it carries.
	envelopeRoom = 4 << 10
	// longestAnswer bounds how long a question may keep a worker.
	longestAnswer = 30 * time.Second
)

// question is answered by the helpers; where they have no room, with ErrBusy.
func (n *Nodes) question(e *envelope, params []byte) {
	q := *e
	deadline := time.Now().Add(min(longestAnswer, time.Duration(min(q.Millis, longestAnswer.Milliseconds()))*time.Millisecond))
	if !n.helpers.do(letterOverhead+len(params), func() { n.answer(&q, params, deadline) }) {
		n.refused.Add(1)
		refusal := envelope{Node: n.self, ID: q.ID, Err: wireBusy}
		n.outbox.send(n.answerTo(&q), refusal.encode(nil))
	}
}

func (n *Nodes) answerTo(q *envelope) string { return n.base + q.Node + "." + kindAnswer }

// answer runs on a helper.
func (n *Nodes) answer(q *envelope, params []byte, deadline time.Time) {
	if time.Now().After(deadline) || n.life.Err() != nil {
		return // nobody waits for it any more
	}
	ctx, cancel := context.WithDeadline(n.life, deadline)
	defer cancel()
	data, err := n.ask(ctx, q.Method, params)
	if err == nil && len(data) > maxAnswer {
		err = ErrTooLarge
	}
	if ctx.Err() != nil {
		return
	}
	n.answered.Add(1)
	to, out := n.answerTo(q), envelope{Node: n.self, ID: q.ID}
	if err != nil {
		if out.Err = errorWire(err); out.Err == wireFailed {
			n.log.Error("question of a node not answered", "method", q.Method, "err", err)
		}
		_ = n.nc.Publish(to, out.encode(nil))
		return
	}
	most := max(1, min(answerPart, int(n.nc.MaxPayload())-envelopeRoom))
	for {
		part := data[:min(most, len(data))]
		data = data[len(part):]
		out.More = len(data) > 0
		// Without a connection the others know by themselves.
		if n.nc.Publish(to, out.encode(part)) != nil || !out.More || ctx.Err() != nil {
			return
		}
		out.Part++
	}
}

// ask keeps a panic in the question.
func (n *Nodes) ask(ctx context.Context, method string, params []byte) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			data, err = nil, fmt.Errorf("cluster: panic: %v\n%s", p, debug.Stack())
		}
	}()
	return n.opts.Answer(ctx, method, params)
}
