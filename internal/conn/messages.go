package conn

import (
	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc/metadata"
)

// headers go with every request: a member that knows no leader is to refuse at once, and etcd counts requests by version.
var headers = metadata.Pairs(
	rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader,
	rpctypes.MetadataClientAPIVersionKey, version.APIVersion,
)

// nothing is a transaction of nothing, for which neither a permission nor a token is needed. It is one within another, which
// etcd takes for a write (because: any member answers an empty one by itself, and one that lags said that etcd went back).
func nothing() *pb.TxnRequest {
	inner := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}}
	return &pb.TxnRequest{Success: []*pb.RequestOp{inner}}
}

func rangeOf(key string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key)}
}

func readOf(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: rangeOf(key)}}
}

func putOf(what etcd.Write) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(what.Key), Value: []byte(what.Value), Lease: int64(what.Lease)}
}

// firstOf returns the one key of a response to rangeOf.
func firstOf(response *pb.RangeResponse) etcd.Entry {
	if len(response.GetKvs()) == 0 {
		return etcd.Entry{}
	}
	return etcd.EntryOf(response.GetKvs()[0])
}
