package perch_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	pb "github.com/centrifugal/protocol"

	"perch/internal/testkit"
)

// dialect is an endpoint that speaks WebSocket: how a session begins there, and
// how a message is put so that it is answered at once, on the loop. So one
// table holds for all of them.
type dialect struct {
	name  string
	path  string
	lines []string // of the opening handshake
	begin []byte   // the payload of the first message; its answer is skipped
	op    byte     // of messages
	// put makes the payload of a message that carries s, and of its answer.
	put func(s string) (message, answer []byte)
}

var dialects = []dialect{
	{name: "echo", path: "/echo", op: testkit.OpText, put: func(s string) ([]byte, []byte) { return []byte(s), []byte(s) }},
	{
		name: "JSON", path: "/connection/websocket", begin: []byte(testkit.ConnectCommand("")), op: testkit.OpText,
		put: func(s string) ([]byte, []byte) {
			id := number(s)
			return fmt.Appendf(nil, `{"id":%d,"unsubscribe":{"channel":"é%s"}}`, id, s), fmt.Appendf(nil, `{"id":%d,"unsubscribe":{}}`, id)
		},
	},
	{
		name: "Protobuf", path: "/connection/websocket", lines: []string{"Sec-WebSocket-Protocol: centrifuge-protobuf"},
		begin: delimited(&pb.Command{Id: 1, Connect: &pb.ConnectRequest{}}), op: testkit.OpBinary,
		put: func(s string) ([]byte, []byte) {
			id := number(s)
			return delimited(&pb.Command{Id: id, Unsubscribe: &pb.UnsubscribeRequest{Channel: "é" + s}}),
				delimited(&pb.Reply{Id: id, Unsubscribe: &pb.UnsubscribeResult{}})
		},
	},
}

// number is a command's id for s; it and the length take one byte each in
// Protobuf, which is UTF-8 then.
func number(s string) uint32 { return crc32.ChecksumIEEE([]byte(s))%100 + 1 }

// delimited is a Protobuf message behind its length.
func delimited(m interface{ MarshalCF() ([]byte, error) }) []byte {
	b, err := m.MarshalCF()
	if err != nil {
		panic(err) // the tables' messages can be encoded
	}
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// open opens a session.
func (d dialect) open(addr string) (*testkit.Conn, error) {
	w, err := testkit.Open(addr, d.path, d.lines...)
	if err != nil || d.begin == nil {
		return w, err
	}
	if err = w.SendFrames(testkit.Client(d.op, d.begin)); err == nil {
		var f testkit.Frame
		if f, err = w.Frame(); err == nil && f.Opcode != d.op {
			err = fmt.Errorf("the session begins with %s", f)
		}
	}
	if err != nil {
		w.Reset()
		return nil, err
	}
	return w, nil
}

// message is a whole message that carries s.
func (d dialect) message(s string) testkit.Frame {
	p, _ := d.put(s)
	return testkit.Client(d.op, p)
}

// answer is what comes back.
func (d dialect) answer(s string) reply {
	_, p := d.put(s)
	return reply{opcode: d.op, payload: p}
}

// parts is a message that carries s in n fragments, as even as can be.
func (d dialect) parts(s string, n int) []testkit.Frame {
	p, _ := d.put(s)
	out := make([]testkit.Frame, n)
	for i := range out {
		op := testkit.OpContinuation
		if i == 0 {
			op = d.op
		}
		out[i] = testkit.Client(op, p[i*len(p)/n:(i+1)*len(p)/n]).More()
	}
	out[n-1].Fin = true
	return out
}

// among puts frames behind the first n of all.
func among(all []testkit.Frame, n int, more ...testkit.Frame) []testkit.Frame {
	return slices.Insert(slices.Clone(all), n, more...)
}
