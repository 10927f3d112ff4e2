package handler

import (
	"encoding/binary"
	"errors"

	pb "github.com/centrifugal/protocol"

	"perch/protocol"
	"perch/topic"
)

// newsPart is about how many bytes of news go to other nodes at once.
const newsPart = 256 << 10

var errNews = errors.New("handler: news of a node not understood")

// EncodeNews writes news of a topic for other nodes: pushes in Protobuf, each
// behind its length. It gives them in parts. Safe from any goroutine.
func EncodeNews(news []topic.News) (parts [][]byte, err error) {
	var b []byte
	for i := range news {
		var push pb.Push
		if info := clientInfo(&news[i].Client, protocol.Protobuf); news[i].Left {
			push.Leave = &pb.Leave{Info: info}
		} else {
			push.Join = &pb.Join{Info: info}
		}
		one, err := push.MarshalCF()
		if err != nil {
			return nil, err
		}
		if len(b) > 0 && len(b)+len(one) > newsPart {
			parts, b = append(parts, b), nil
		}
		b = append(binary.AppendUvarint(b, uint64(len(one))), one...)
	}
	return append(parts, b), nil
}

// DecodeNews reads what EncodeNews wrote. Safe from any goroutine.
func DecodeNews(b []byte) ([]topic.News, error) {
	var all []topic.News
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, errNews
		}
		var push pb.Push
		if push.UnmarshalCF(b[n:n+int(size)]) != nil {
			return nil, errNews
		}
		b = b[n+int(size):]
		one := topic.News{Left: push.Leave != nil}
		info := push.Join.GetInfo()
		if one.Left {
			info = push.Leave.GetInfo()
		}
		if info == nil {
			return nil, errNews
		}
		one.Client = topic.ClientInfo{User: info.User, Client: info.Client, ConnInfo: info.ConnInfo, ChanInfo: info.ChanInfo}
		all = append(all, one)
	}
	return all, nil
}
