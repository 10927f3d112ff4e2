package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"
)

// commands are what a message of each encoding is made of in these tests.
var commands = []*Command{
	{Id: 1, Connect: &pb.ConnectRequest{Token: "t\"\n", Name: "go", Data: []byte(`{"a":[1,2]}`)}},
	{Id: 2, Subscribe: &pb.SubscribeRequest{Channel: "news", Recover: true, Offset: 7, Epoch: "e"}},
	{Id: 3, Publish: &pb.PublishRequest{Channel: "ü:1", Data: []byte(`"x"`)}},
	{Id: 4, Rpc: &pb.RPCRequest{Method: "echo", Data: []byte(`null`)}},
	{Send: &pb.SendRequest{Data: []byte(`1`)}},
}

func message(t testing.TB, e Encoding, list ...*Command) []byte {
	t.Helper()
	var out []byte
	for i, c := range list {
		if e == Protobuf {
			raw, err := c.MarshalCF()
			if err != nil {
				t.Fatal(err)
			}
			out = append(binary.AppendUvarint(out, uint64(len(raw))), raw...)
			continue
		}
		if i > 0 {
			out = append(out, '\n')
		}
		out = c.AppendJSON(out)
	}
	return out
}

// encoded is a comparable form of a command.
func encoded(c *Command) string { return string(c.AppendJSON(nil)) }

func readAll(msg []byte, e Encoding) ([]*Command, error) {
	frame := NewFrame(msg, e)
	var out []*Command
	for {
		raw, err := frame.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		c := new(Command)
		if err := Decode(raw, e, c); err != nil {
			return out, err
		}
		out = append(out, c)
	}
}

func TestFrameReadsCommandsInOrder(t *testing.T) {
	for _, e := range []Encoding{JSON, Protobuf} {
		msg := message(t, e, commands...)
		got, err := readAll(msg, e)
		if err != nil {
			t.Fatal(err)
		}
		// Whoever reads the next message into the same buffer must not change what
		// was decoded from this one.
		clear(msg)
		if len(got) != len(commands) {
			t.Fatalf("encoding %d: %d commands, want %d", e, len(got), len(commands))
		}
		for i := range got {
			if encoded(got[i]) != encoded(commands[i]) {
				t.Errorf("encoding %d: command %d is %s, want %s", e, i, encoded(got[i]), encoded(commands[i]))
			}
		}
	}
}

func TestFrameErrors(t *testing.T) {
	many := strings.Repeat("{}\n", MaxCommands)
	tests := []struct {
		name  string
		e     Encoding
		msg   string
		count int
		err   error
	}{
		{"json empty", JSON, "", 0, ErrEmpty},
		{"json blank", JSON, " \n\r\n\t", 0, ErrEmpty},
		{"json trailing newline", JSON, "{\"id\":1}\n", 1, nil},
		{"json blank lines between", JSON, "{\"id\":1}\n\r\n\n{\"id\":2}\r\n", 2, nil},
		{"json most commands", JSON, many, MaxCommands, nil},
		{"json too many", JSON, many + "{}", MaxCommands, ErrTooManyCommands},
		{"protobuf empty", Protobuf, "", 0, ErrEmpty},
		{"protobuf pongs", Protobuf, "\x00\x00", 2, nil},
		{"protobuf most commands", Protobuf, strings.Repeat("\x00", MaxCommands), MaxCommands, nil},
		{"protobuf too many", Protobuf, strings.Repeat("\x00", MaxCommands+1), MaxCommands, ErrTooManyCommands},
		{"protobuf short", Protobuf, "\x02\x08", 0, ErrLength},
		{"protobuf truncated length", Protobuf, "\x80", 0, ErrLength},
		{"protobuf long length", Protobuf, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, ErrLength},
		{"protobuf endless length", Protobuf, strings.Repeat("\x80", 11), 0, ErrLength},
		{"protobuf second short", Protobuf, "\x02\x08\x01\x05\x08", 1, ErrLength},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll([]byte(tt.msg), tt.e)
			if len(got) != tt.count || !errors.Is(err, tt.err) || (tt.err == nil) != (err == nil) {
				t.Errorf("%d commands and %v, want %d and %v", len(got), err, tt.count, tt.err)
			}
			// In parts it is the same message, with the same bounds.
			n, rest := 0, []byte(tt.msg)
			for err = nil; err == nil; n++ {
				f := ContinueFrame(rest, tt.e, n)
				_, err = f.Next()
				rest = f.Rest()
			}
			if n--; n != tt.count || tt.err != nil && !errors.Is(err, tt.err) || tt.err == nil && err != io.EOF {
				t.Errorf("in parts: %d commands and %v, want %d and %v", n, err, tt.count, tt.err)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	deep := `{"id":1,"subscribe":{"channel":"a","tf":` + strings.Repeat(`{"nodes":[`, 2000) + strings.Repeat(`]}`, 2000) + `}}`
	for _, raw := range []string{
		`{`, `[]`, `1`, `"x"`, `{"id":-1}`, `{"id":4294967296}`, `{"id":1}{"id":2}`, `{"id":1,"id":2}`,
		`{"id":1,"rpc":{"data":{]}}`, "{\"id\":1,\"rpc\":{\"method\":\"\xff\"}}", deep,
	} {
		if err := Decode([]byte(raw), JSON, new(Command)); err == nil {
			t.Errorf("%.40s was taken", raw)
		}
	}
	for _, raw := range []string{"\x08", "\x08\xff", "\x22\x05\x0a", "\x22\x03\x0a\x01\xff", "\x00"} {
		if err := Decode([]byte(raw), Protobuf, new(Command)); err == nil {
			t.Errorf("%q was taken", raw)
		}
	}
}

func TestIsPong(t *testing.T) {
	tests := []struct {
		e    Encoding
		msg  string
		want bool
	}{
		{JSON, "{}", true},
		{JSON, "{}\n", true},
		{JSON, "{}\r\n", true},
		{JSON, "{}\n{}", false},
		{JSON, "{}x", false},
		{JSON, "{", false},
		{JSON, "", false},
		{JSON, "\x00", false},
		{Protobuf, "\x00", true},
		{Protobuf, "\x00\x00", false},
		{Protobuf, "", false},
		{Protobuf, "{}", false},
	}
	for _, tt := range tests {
		if got := IsPong([]byte(tt.msg), tt.e); got != tt.want {
			t.Errorf("IsPong(%q, %d) is %v", tt.msg, tt.e, got)
		}
	}
	// Within a message of more, each is told on its own.
	frame := NewFrame([]byte("{}\n{\"id\":1}\n{}\n"), JSON)
	var pongs []bool
	for {
		raw, err := frame.Next()
		if err != nil {
			break
		}
		pongs = append(pongs, IsEmptyCommand(raw, JSON))
	}
	if !reflect.DeepEqual(pongs, []bool{true, false, true}) {
		t.Errorf("pongs %v", pongs)
	}
}

func FuzzFrame(f *testing.F) {
	for _, e := range []Encoding{JSON, Protobuf} {
		f.Add(message(f, e, commands...), e == Protobuf)
		f.Add(message(f, e, commands[1]), e == Protobuf)
	}
	f.Add([]byte("{}\n{\"id\":1,\"rpc\":{}}\n"), false)
	f.Add([]byte("\x00\x02\x08\x01\x80"), true)
	f.Fuzz(func(t *testing.T, msg []byte, protobuf bool) {
		e := JSON
		if protobuf {
			e = Protobuf
		}
		before := bytes.Clone(msg)
		list, err := readAll(msg, e)
		if len(list) > MaxCommands {
			t.Fatalf("%d commands", len(list))
		}
		if !bytes.Equal(before, msg) {
			t.Fatal("the message was changed")
		}
		if IsPong(msg, e) && (err != nil || len(list) != 1 || encoded(list[0]) != "{}") {
			t.Fatalf("a pong decodes to %d commands, %v", len(list), err)
		}
		if err != nil {
			return
		}
		// What was read can be said again, and reads the same.
		again := message(t, e, list...)
		clear(msg)
		second, err := readAll(again, e)
		if err != nil || len(second) != len(list) {
			t.Fatalf("second reading: %d commands of %d, %v", len(second), len(list), err)
		}
		for i := range list {
			// The maps of a connect have no order.
			if list[i].Connect == nil && !bytes.Equal(message(t, e, list[i]), message(t, e, second[i])) {
				t.Fatalf("command %d changed", i)
			}
		}
	})
}
