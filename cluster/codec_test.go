package cluster

import (
	"bytes"
	"maps"
	"reflect"
	"strings"
	"testing"

	"perch/topic"
)

func TestCodec(t *testing.T) {
	for name, tt := range map[string]struct {
		p *topic.Publication
		o topic.PublishOptions
	}{
		"plain":   {&topic.Publication{Data: []byte(`{"a":1}`)}, topic.PublishOptions{}},
		"empty":   {&topic.Publication{Data: []byte{}}, topic.PublishOptions{Delta: true}},
		"tags":    {&topic.Publication{Data: []byte("x"), Tags: map[string]string{"a": "b", "": "c", "d": ""}}, topic.PublishOptions{}},
		"version": {&topic.Publication{Data: []byte("x")}, topic.PublishOptions{Version: 1 << 60, VersionEpoch: "e"}},
		"info": {&topic.Publication{Data: []byte("x"), Info: &topic.ClientInfo{User: "u", Client: "c", ConnInfo: []byte("{}")}},
			topic.PublishOptions{Delta: true, Version: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := decode(encode("news:ü.>*", tt.p, &tt.o))
			if err != nil {
				t.Fatal(err)
			}
			if r.topic != "news:ü.>*" || r.version != tt.o.Version || r.versionEpoch != tt.o.VersionEpoch ||
				r.flags&flagDelta != 0 != tt.o.Delta || !bytes.Equal(r.pub.Data, tt.p.Data) ||
				!maps.Equal(r.pub.Tags, tt.p.Tags) || !reflect.DeepEqual(r.pub.Info, tt.p.Info) {
				t.Errorf("%s became %+v", tt.p.Data, r)
			}
		})
	}
	if r, err := decode(encodeRemoved("a", 1<<40)); err != nil || r.topic != "a" || r.previous != 1<<40 || r.pub != nil {
		t.Errorf("removed: %+v, %v", r, err)
	}
	if r, err := decode(encodeEpoch("abc")); err != nil || r.epoch != "abc" || r.pub != nil {
		t.Errorf("epoch: %+v, %v", r, err)
	}
}

// FuzzDecode: what anybody may send on our subjects is read or refused.
func FuzzDecode(f *testing.F) {
	f.Add(encode("news:x", &topic.Publication{Data: []byte("x"), Tags: map[string]string{"a": "b"},
		Info: &topic.ClientInfo{User: "u"}}, &topic.PublishOptions{Version: 2, Delta: true}))
	f.Add(encodeRemoved("news:x", 7))
	f.Add(encodeEpoch("abc"))
	f.Add([]byte{})
	f.Add([]byte{formatOne, flagTags, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		name, nameErr := topicOf(b)
		if err == nil && (nameErr != nil || name != r.topic) {
			t.Errorf("topic %q, %v, but %q", name, nameErr, r.topic)
		}
		if err != nil || r.pub == nil {
			return
		}
		again, err := decode(encode(r.topic, r.pub, &topic.PublishOptions{Version: r.version, VersionEpoch: r.versionEpoch}))
		if err != nil || again.topic != r.topic || !bytes.Equal(again.pub.Data, r.pub.Data) || !maps.Equal(again.pub.Tags, r.pub.Tags) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

// TestToken: each name has a token of its own, which is one of a subject.
func TestToken(t *testing.T) {
	seen := map[string]string{}
	names := []string{"", "a", "a.b", "a=2Eb", "a b", "a*", ">", "*", "ü", "\x00", "$x:#y", "!epoch", "A", "=", "a\n"}
	for _, name := range names {
		k := namespaceToken(name)
		if before, ok := seen[k]; ok {
			t.Errorf("%q and %q are both %q", before, name, k)
		}
		seen[k] = name
		if strings.ContainsAny(k, ".*> \t\r\n!\x00") || k == "" {
			t.Errorf("%q becomes %q", name, k)
		}
	}
}
