package main

import (
	"context"
	"fmt"

	"github.com/discov-go/discov/example/user"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// users is the service: an id and a name each.
type users struct {
	user.UnimplementedUsersServer
	names map[string]string
}

func newServer(healthy *health.Server) *grpc.Server {
	server := grpc.NewServer()
	user.RegisterUsersServer(server, users{names: map[string]string{"1": "Ada", "2": "Barbara", "3": "Grace"}})
	grpc_health_v1.RegisterHealthServer(server, healthy)
	return server
}

// checkHealth asks the health service of this very process.
func checkHealth(ctx context.Context, healthy *health.Server) error {
	response, err := healthy.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if now := response.GetStatus(); now != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the server is %s", now)
	}
	return nil
}

func (u users) GetUser(_ context.Context, request *user.GetUserRequest) (*user.GetUserResponse, error) {
	name, ok := u.names[request.GetId()]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no user %q", request.GetId())
	}
	return &user.GetUserResponse{Id: request.GetId(), Name: name}, nil
}
